# bitnet in a container: docs/install.md. Kernels are compiled while the image is built, for every instruction set: it may run anywhere.
FROM python:3.12-slim

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY bitnet_cli bitnet_cli
COPY kernels kernels
# A version is that of the folder, so there is none to pin.
# hadolint ignore=DL3013
RUN pip install --no-cache-dir '.[serve]' && rm -rf /src/*

# Kernels are read by every user, and written by none but root: that is what makes it safe to run machine code from there.
ENV BITNET_MODELS=/models HF_HOME=/models/.hub BITNET_HISTORY=
RUN bitnet compile --all --into /var/cache/bitnet -q && mkdir -m 0755 /models

WORKDIR /
USER 1000:1000
ENTRYPOINT ["bitnet"]
CMD ["run", "-p", "And the king said", "-n", "64", "--temp", "0.6"]
