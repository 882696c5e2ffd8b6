"""What the benchmarks share: machine, children, contenders, load, truth, reports."""
