# Sourced by check and test. Goes to the root of the repository and puts the tools of the extra `dev` on PATH.
#
# The virtual environment is $BITNET_VENV, else the active one, else .venv, which is made on first use with $PYTHON (default: python3).
# The package is installed there in editable form, and again only after pyproject.toml changed. BITNET_LOCK names a lock with digests,
# BITNET_UV a uv, which does in seconds what takes pip a minute.

caller=$PWD
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
venv=${BITNET_VENV:-${VIRTUAL_ENV:-$PWD/.venv}}
case $venv in
/*) ;;
*) venv=$caller/$venv ;;
esac

if [ ! -x "$venv/bin/python" ]; then
    python=${PYTHON:-python3}
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "bitnet needs Python 3.10 or newer; PYTHON=/path/to/python3.x names one" >&2
        exit 1
    }
    if [ -n "${BITNET_UV:-}" ]; then
        "$BITNET_UV" venv --quiet --seed --python "$python" "$venv"
    else
        "$python" -m venv "$venv"
    fi
fi

install() { # arguments of pip install
    if [ -n "${BITNET_UV:-}" ]; then
        "$BITNET_UV" pip install --quiet --python "$venv/bin/python" "$@"
    else
        # setuptools warns of folders with the package's name at every editable install; here they are meant.
        PYTHONWARNINGS="ignore:Editable installation" "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    fi
}

# The stamp holds what was installed, and from which folder: an environment can be shared by two checkouts. A later `pip install .` into the
# same environment leaves a copy in place of the editable form, and tests would then see old code: hence the look for the .pth file.
stamp=$venv/bitnet-dev.stamp
if ! compgen -G "$venv/lib*/python*/site-packages/__editable__.bitnet_cli-*.pth" >/dev/null ||
    ! { echo "$PWD" && cat pyproject.toml; } | cmp -s - "$stamp"; then
    echo "installing bitnet with its development tools into $venv" >&2
    # With BITNET_LOCK, as in CI, what the lock names and nothing else: a release that was put in another's place is refused by its digest.
    arguments=(--editable '.[dev]')
    if [ -n "${BITNET_LOCK:-}" ]; then
        install --no-deps --require-hashes --requirement "$BITNET_LOCK"
        arguments=(--no-deps --no-build-isolation --editable .)
    fi
    install "${arguments[@]}"
    if [ -n "${BITNET_UV:-}" ]; then # uv makes no bytecode, and children that compile kernels (`-B`) would read these sources each time
        "$venv/bin/python" -c 'import llvmlite, numba, numpy; print(*(m.__path__[0] for m in (llvmlite, numba, numpy)), sep="\n")' |
            xargs -d '\n' "$venv/bin/python" -m compileall -q
    fi
    { echo "$PWD" && cat pyproject.toml; } >"$stamp"
fi
PATH=$venv/bin:$PATH
