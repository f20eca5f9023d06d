"""docs/faults.md: every bad input and fault that is reckoned with, what happens, and the tests that show it.

python scripts/make_faults_docs.py            write the page
python scripts/make_faults_docs.py --check    exit code 1 where it is not as it should be, or names a test that is not there
"""

import ast
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "faults.md"
REFUSED = "refused in one line, exit code 3"

# A fault | what happens, and under it its tests as `file::name`, without `tests/` and `test_`. `refused` stands for REFUSED.
TABLE = """
GGUF: empty, cut at any byte | refused
    hostile/gguf::cut_at_every_byte commands/run::files_that_are_no_model
GGUF: another magic, big-endian | refused, with the likely cause
    hostile/gguf::first_bytes
GGUF: versions but 2 and 3 | refused
    hostile/gguf::first_bytes hostile/gguf::accepted_versions
GGUF: counts of tensors or keys that the file cannot hold | refused, before any loop
    hostile/gguf::counts_that_do_not_fit hostile/gguf::counts_above_the_cap_in_a_file_that_could_hold_them
GGUF: strings past the end, or above the cap | refused
    hostile/gguf::lengths_past_the_end hostile/gguf::lengths_above_the_cap_in_a_file_that_could_hold_them
GGUF: empty or repeated keys | refused
    hostile/gguf::keys hostile/gguf::key_twice
GGUF: unknown types of values, arrays of arrays | refused
    hostile/gguf::unknown_value_type hostile/gguf::arrays_of_arrays
GGUF: counts of array items | refused
    hostile/gguf::array_counts hostile/gguf::string_count_above_the_cap_is_shared_by_all_arrays
GGUF: alignment 0, odd, huge, of another type | refused
    hostile/gguf::alignment hostile/gguf::alignment_type
A model's key that is missing or of another type | refused
    model/config::a_required_key_is_missing model/config::an_integer_of_another_type model/config::an_integer_out_of_range
A model's numbers that contradict each other | refused
    model/config::numbers_that_disagree text/faults::byte_bpe
GGUF: names of tensors: long, empty, repeated, with control characters | refused
    hostile/gguf_tensors::tensor_names hostile/gguf_tensors::tensor_twice
GGUF: 0 or more than 4 dimensions | refused
    hostile/gguf_tensors::dimension_count
GGUF: dimensions whose product is 0 or overflows | refused
    hostile/gguf_tensors::shapes_and_types gguf_file/types::impossible_shapes
GGUF: rows that are no whole blocks; unknown types | exit code 3; 4 for a known type that is not read
    hostile/gguf_tensors::shapes_and_types hostile/gguf_tensors::known_types_that_are_not_read
GGUF: offsets past the end, overlapping, with holes | refused
    hostile/gguf_tensors::offsets
Bytes after the last tensor | a note, with their number
    hostile/gguf_tensors::bytes_after_the_last_tensor commands/quantize::bytes_after_the_last_tensor_are_noted
Tensors missing, of another shape, too many | refused; a note for those too many
    model/weights::names_of_missing_tensors model/weights::a_projection_of_another_shape
    model/weights::extra_tensors_are_named_and_do_no_harm
Scales and norms that are NaN, infinite, 0 | refused
    model/weights::a_scale_that_is_no_positive_number model/weights::a_norm_that_is_not_finite
Packed codes that mean nothing (3; trits from 243 on) | `quantize` refuses them, `inspect --check` finds them, `run` has a defined meaning
    ternary/layouts::values_that_are_not_ternary ternary/layouts::bytes_that_no_packer_writes model/weights::code_3_means_2
A split model whose parts are missing or disagree | refused, with the part
    gguf_file/split::missing_parts gguf_file/split::parts_of_other_models hostile/split::random_damage
A file that becomes shorter while it is mapped | one line, exit code 1; `--no-mmap` reads it first
    commands/lost_pages::while_kernels_or_numpy_read_it commands/lost_pages::in_memory_it_does_not_matter
    hostile/gguf::replaced_while_mapped
A path that leads to a folder, a pipe, a device, a circle of links | refused
    hostile/gguf::folder hostile/gguf::named_pipe hostile/gguf::device hostile/gguf::links hostile/gguf::unreadable
safetensors: length, encoding and depth of the header | refused
    checkpoint/safetensors::hostile_file checkpoint/safetensors::every_truncation_and_random_damage
safetensors: spans that overlap, unknown types | refused
    checkpoint/safetensors::hostile_file checkpoint/safetensors::known_dtype_that_is_not_read_is_refused_on_use
An index that names files elsewhere | refused
    checkpoint/safetensors::shard_names
    checkpoint/safetensors::links_out_of_the_folder_are_refused_but_those_of_the_hub_cache_are_not
Pickle in any of its file formats | exit code 4, never loaded
    checkpoint/safetensors::pickle_is_never_loaded style::no_code_runs_from_files
config.json: huge, unknown model, code of its own | exit code 3 or 4; code is never run
    checkpoint/config::bad_values checkpoint/config::own_code_is_never_run_but_does_not_matter_for_a_known_architecture
    checkpoint/any_json::any_value_anywhere
Tokenizers: bad UTF-8, missing and repeated tokens, ids out of range | refused; odd bytes are kept
    text/faults::byte_bpe text/faults::sentencepiece text/faults::odd_vocabularies_that_are_allowed
Chat templates: code, endless loops, huge output | a process of its own with a second and 256 MB; exit code 3
    text/chat/jinja::bad_templates text/chat/jinja::what_a_template_may_use
Two templates of one model that disagree | `inspect` says which is taken and why
    text/chat/choice::by_the_files_template text/chat/choice::by_the_models_name
Control tokens in what a user types | text
    text/special::a_message_cannot_forge_a_control_token commands/run::control_tokens_typed_by_a_user_are_text
Prompts: empty, without word borders, half surrogates | begins a text, or exit code 2; a megabyte in a second
    text/special::odd_text text/special::a_megabyte_without_word_borders commands/run::an_empty_prompt_begins_a_text
A prompt longer than the context | exit code 2, with both numbers
    model/engine::the_context_is_full commands/run::what_cannot_be_asked
A character over several tokens; bytes that are none | U+FFFD at the end only
    text/stream::emoji_over_four_tokens text/stream::any_ids
Escape sequences in names, keys, texts | escaped; left out of model text on a terminal
    commands/escapes::of_a_model commands/escapes::of_the_command_line text/stream::terminal_safe
Options out of range | exit code 2
    commands/no_traceback::numbers_out_of_any_range model/sampler::values_out_of_range
Logits that are NaN or infinite | exit code 1, with the position; minus infinity is no choice
    commands/run::logits_that_are_not_finite model/sampler_properties::what_no_probabilities_come_of
    model/sampler_properties::minus_infinity_is_a_token_that_is_not_there
Token ids outside the vocabulary | UsageError before any kernel
    model/engine::ids_outside_the_vocabulary
Ctrl-C in a text, a compilation, an import, a conversion | exit code 130, terminal and files in order
    commands/run::ctrl_c commands/run::ctrl_c_while_kernels_compile kernels/interrupts::at_any_moment_of_the_linker
    start::ctrl_c_while_modules_are_imported commands/convert_stopped::stopped_in_the_middle_of_writing
SIGTERM to the server | no new requests, streams end, exit code 0
    serving/coming_and_going::sigterm_ends_with_zero serving/coming_and_going::drain
kill -9 while a file is written | the target is absent or whole; the next run takes leftovers away
    commands/convert_stopped::kill_at_random_moments faults/processes::killed_at_random_moments
    gguf_file/writer::part_file_of_a_killed_writer_goes_with_the_next_one
A full or failing disk, a folder that is read-only | exit code 1, with the bytes needed; nothing is left
    faults/nth_fault::a_disk_that_is_full_at_any_byte faults/nth_fault::every_call_of_the_system_that_writes
    faults/nth_fault::a_disk_that_cannot_be_read faults/mounts::a_full_file_system faults/mounts::a_read_only_file_system
    commands/convert_stopped::read_only_folder
An output that exists, that is the input, in no folder | exit code 2
    commands/convert::output_exists commands/convert::output_is_an_input gguf_file/writer::target_that_cannot_be
Two conversions to one target | both finish
    gguf_file/writer::two_writers_of_one_target_both_finish
Too little memory | said before loading where it can be known, else one line
    model/engine::a_cache_larger_than_memory commands/lost_pages::too_large_for_memory faults/nth_fault::every_allocation_of_a_load
    faults/processes::little_memory
Processes that share an empty cache of kernels, one killed | one compiles, the others wait for it
    faults/processes::processes_at_once_compile_once faults/processes::a_compilation_that_was_killed_or_hangs
    kernels/compile_cache::two_processes_may_fill_an_empty_folder_at_once
A cache folder that is read-only, full, without a home | compiled each time, said once
    kernels/compile_cache::kernels_work_without_a_folder faults/processes::a_full_disk_under_the_kernels_is_said_once
A cache folder that others can write | not used
    kernels/compile_cache::a_folder_that_others_can_write_is_not_used kernels/private::who_can_write_above_can_swap_the_folder
A cache of another version or CPU; damaged files | compiled again
    kernels/compile_cache::a_change_in_any_source_file_changes_the_name kernels/compile_cache::damaged_machine_code_is_not_run
A CPU without an instruction set; few cores allowed | another set, the same integers
    kernels/isa::the_same_integers kernels/isa::a_set_that_cannot_be_had_is_an_error
    machine/threads::only_the_cpus_of_this_process_count
Many threads that use one model | they wait for each other
    api::threads_wait_for_each_other kernels/team::scenario
fork after kernels ran | an error that says so
    api::a_forked_process_is_told
stdout closed early | silence, exit code 1
    commands/run::a_reader_that_goes_away
Streams that are closed, or no terminal | a prompt from a pipe, no questions
    commands/run::closed_streams commands/run::every_way_to_give_a_prompt
NO_COLOR, TERM=dumb, LANG=C, narrow terminals | plain lines, characters replaced
    commands/run::output_that_the_encoding_lacks commands/progress::no_bars_where_the_cursor_cannot_move
No network | all works but a download, which says so
    commands/hub::no_network no_network::nothing_is_asked_of_the_network
A port in use; an open address without a key | exit code 1 or 2, with the reason
    serving/refusals::addresses_that_are_none serving/refusals::keys
Hosts and origins of other sites | 403
    serving/refusals::names_that_are_not_the_servers serving/refusals::pages_of_other_sites
Bodies: huge, endless, nested, of another type | 400, 413 or 415
    serving/refusals::bodies_that_are_no_json serving/refusals::large_and_slow_bodies
Slow and flooding clients | 408, or closed
    serving/refusals::large_and_slow_bodies serving/refusals::headers_that_do_not_end
A reader of a stream that is slow | its request alone is ended
    serving/coming_and_going::a_client_that_does_not_read
A client that goes away | its request is ended, its place free
    serving/coming_and_going::a_client_that_goes serving/coming_and_going::a_client_that_goes_while_it_waits
More requests than places | they wait, then 429
    serving/coming_and_going::too_many serving/coming_and_going::eight_at_once
An error in one request | of that request alone
    serving/refusals::a_request_that_fails_hurts_no_other
Stop strings over several tokens | held back until decided
    text/stop::any_text_in_any_pieces
API keys | 401 without one; never in the log
    serving/refusals::keys serving/refusals::lines_of_the_log_are_lines
A clock that jumps | times are measured by a clock that does not; a future date of a file harms nothing
    kernels/child::a_clock_that_was_wrong
A benchmark on a busy machine | median and spread, with a warning
    commands/bench/bench::table
A process that is stopped and continued | the same text
    faults/processes::stopped_and_continued
A library that cannot be loaded | one line
    faults/processes::little_memory
Kernels that compute wrongly on this machine | the command starts again with the portable set, and says so; in a library an error
    model/self_test::says_what_is_wrong commands/again::a_kernel_that_is_broken_on_purpose commands/again::the_text_is_right_all_the_same
    commands/again::never_a_second_time_nor_as_a_part_of_another_program
Ctrl-C between two steps, with texts of other threads | theirs go on, and no room of the cache is lost
    model/ctrl_c::everywhere notebook::threads
"""
NOT_HERE = (
    (
        "disk quotas, a clock that is set back",
        "need the administrator's rights; a full disk and a file's date stand in for them (rows 43 and 68); their tests are skipped",
    ),
    ("power cuts", "files are synced before they are renamed; nothing here can cut the power"),
    (
        "faulty memory or CPU",
        "damage in files is found by their digests, and kernels that compute wrongly before the first token (row 72); "
        "what fails later is not",
    ),
)


@cache
def functions(path: Path) -> frozenset[str]:
    """Names of the tests in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


def location(name: str) -> tuple[Path, str]:
    """`model/config::a_test` -> the file and the function. ValueError: there is none."""
    file, _, function = name.partition("::")
    folder, _, stem = file.rpartition("/")
    path = ROOT / "tests" / folder / (f"{stem}.py" if stem.startswith("test_") else f"test_{stem}.py")
    if not path.is_file() or f"test_{function}" not in functions(path):
        raise ValueError(f"no test {name}")
    return path, f"test_{function}"


def rows() -> list[tuple[str, str, list[str]]]:
    """TABLE: faults, what happens, names of tests."""
    found: list[tuple[str, str, list[str]]] = []
    for line in TABLE.strip().splitlines():
        if line.startswith(" "):
            found[-1][2].extend(line.split())
        else:
            fault, right = line.split(" | ")
            found.append((fault, right.replace("refused", REFUSED, 1) if right.startswith("refused") else right, []))
    return found


def page() -> str:
    """The whole page. ValueError: a test that it names is not there."""
    lines = [
        "# Faults",
        "",
        "Every bad input and fault that is reckoned with: what happens, and the tests that show it. Written by",
        "`scripts/make_faults_docs.py`, which knows that the tests are there. Where nothing else is said, a refusal is one line on stderr",
        "without a traceback, it leaves no file behind, and takes under a second and 64 MB.",
        "",
        "| # | fault | what happens | tests |",
        "|---|---|---|---|",
    ]
    for number, (fault, right, tests) in enumerate(rows(), 1):
        found = [location(name) for name in tests]
        shown = ", ".join(f"[{name[5:].replace('_', ' ')}](../{path.relative_to(ROOT).as_posix()})" for path, name in found)
        lines.append(f"| {number} | {fault} | {'' if right == 'server' else right} | {shown} |")
    lines += ["", "Not tested, and why:", "", *(f"- {what}: {why}." for what, why in NOT_HERE), ""]
    return "\n".join(lines)


def main() -> None:
    """Write the page, or compare."""
    text = page()
    if "--check" in sys.argv[1:]:
        sys.exit(
            0
            if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
            else "docs/faults.md is not what scripts/make_faults_docs.py writes"
        )
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
