"""The README that is written beside the figures."""

from benchmarks.tables import readme, table

MEASURED = {
    "contender": "ours",
    "tokens": 1024,
    "tokens_per_s": 1234.5,
    "low_tokens_per_s": 99.26,
    "high_tokens_per_s": 2e6,
}


def test_medians_have_their_intervals_and_what_is_missing_its_reason() -> None:
    rows = [MEASURED, {"contender": "Mamba", "skipped": "about 16 s a run", "tokens": 4096}]
    assert table(rows).splitlines() == [
        "|  | tokens | tokens/s |",
        "| --- | --- | --- |",
        "| ours | 1,024 | 1,234 (99.3–2,000,000) |",
        "| Mamba: about 16 s a run | 4,096 |  |",
    ]


def test_it_says_what_was_run_and_where() -> None:
    document = {
        "benchmark": "reading",
        "command": "python -m benchmarks --only reading",
        "commit": "0123456789abcdef",
        "has_uncommitted_changes": True,
        "date": "2026-11-21",
        "versions": {"torch": "2.13"},
        "accelerator": None,
        "processor": "Some CPU",
        "threads": 1,
        "cores": 2,
        "matmul_gflops_per_s": 93.0,
        "read_gb_per_s": 9.5,
        "rows": [MEASURED],
    }
    text = readme([document])
    assert "## Reading" in text
    assert (
        "`python -m benchmarks --only reading`, commit 0123456789ab, with changes, 2026-11-21, Some CPU, 1 of 2 cores, torch"
        in text
    )
    assert "multiplies matrices at 93.0 GFLOP/s and reads memory at 9.5 GB/s" in text
