"""Prometheus's text form: families of samples, and histograms, one line a sample.

Floor: operators, below the metrics. Pure. Format:
prometheus.io/docs/instrumenting/exposition_formats, text version 0.0.4. All names begin with
`keybrake_`, all values are integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from kb_mcp.proxy.meters import Histogram

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Labels as they stand between the braces, and the value.
Sample = tuple[str, int]


def labels(given: Mapping[str, str]) -> str:
    """Write labels as they stand between the braces of a sample, by which many may begin."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in given.items())


def family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    """Yield the lines of a family of one `kind`, a counter or a gauge."""
    yield f"# HELP keybrake_{name} {text}\n# TYPE keybrake_{name} {kind}\n"
    for inside, value in samples:
        yield f"keybrake_{name}{{{inside}}} {value}\n"


def histograms(name: str, text: str, series: Iterable[tuple[str, Histogram]]) -> Iterator[str]:
    """Yield the lines of a family of histograms, each with labels of its own."""
    yield f"# HELP keybrake_{name} {text}\n# TYPE keybrake_{name} histogram\n"
    for inside, histogram in series:
        for bound, count in histogram.cumulative():
            yield f'keybrake_{name}_bucket{{{inside},le="{bound}"}} {count}\n'
        yield f"keybrake_{name}_sum{{{inside}}} {histogram.total}\n"
        yield f"keybrake_{name}_count{{{inside}}} {histogram.count}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
