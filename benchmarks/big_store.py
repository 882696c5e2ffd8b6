"""What size does to a store: charges, the start, operators' reads, and the walk over the audit.

A store of ten million audit rows, two million operations and ten thousand keys (less in the short
form) serves beside an empty one, turn by turn. Needs some 9 GB where temporary files are.

    python benchmarks/big_store.py [--short | --smoke] [--rounds N] [--json] [--plot FILE.svg]
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import httpx
from stage.big import Size, fill
from stage.children import free_port
from stage.commands import timed
from stage.contenders import Contender
from stage.house import CONFIG, House, serving
from stage.machine import cores
from stage.options import Options
from stage.report import Report, measured
from stage.runs import CLIENTS, Runs
from stage.upstream import upstream

SIZES = {"full": Size(10_000_000, 2_000_000, 10_000), "short": Size(100_000, 20_000, 100),
         "smoke": Size(10_000, 2_000, 50)}  # fmt: skip
SERVING, READS, COMMANDS, WALK = "Serving", "Reads of a running `up`", "Commands", "Whole audit"
TOKEN = "only-here"  # noqa: S105 - of a server that lives for minutes
BIG, EMPTY = "big store", "empty store"
PAGES = ("/", "/keys", "/operations", "/audit", "/metrics", "/audit?customer=cus_big77",
         "/audit?code=rate_limited", "/audit?agent=agent-3", "/operations?agent=agent-3",
         "/admin/v1/operations?limit=100", "/admin/v1/spend",
         "/admin/v1/audit?limit=100")  # fmt: skip
ASKED = (("operations", "list", "--limit", "100", "--json"), ("spend", "--json"),
         ("audit", "list", "--limit", "100", "--json"))  # fmt: skip
LIMIT_MS, START_S = 100, 1.0


def open_store(stack: ExitStack, house: House, core: int, report: Report, name: str) -> Contender:
    """Start `up` on a store with both listeners, and note how long that took."""
    port = free_port()
    begun = time.perf_counter()
    up, url = stack.enter_context(
        serving(house, core, "--admin-port", str(port), environ={"KEYBRAKE_ADMIN_TOKEN": TOKEN})
    )
    report.sample(SERVING, name, start_s=time.perf_counter() - begun)
    token = (house.folder / "token").read_text()
    return Contender(name, url, [up.pid], f"http://127.0.0.1:{port}", token=token, house=house)


def serve(options: Options, report: Report, runs: Runs, houses: dict[str, House]) -> None:
    """Start on both stores, charge on both, and read from the big one."""
    core = cores()[0]
    for number in range(options.rounds):
        report.progress(f"round {number + 1} of {options.rounds}")
        with ExitStack() as stack:
            both = [open_store(stack, houses[name], core, report, name) for name in houses]
            for contender in both[:: 1 if number % 2 else -1]:
                runs.warm(contender, CLIENTS, options.of(1, 1, 0))
                bills = runs.new_bills(contender)
                ran, spent = runs.load(contender, bills, CLIENTS, options.of(6, 2, 1))
                report.sample(
                    SERVING, contender.name, charges_per_s=ran.per_second,
                    CPU_us=spent / ran.answered * 1e6, p50_ms=ran.p50_us / 1000,
                    p99_ms=ran.p99_us / 1000,
                )  # fmt: skip
            for contender in both:
                read_pages(options, report, contender)


def read_pages(options: Options, report: Report, contender: Contender) -> None:
    """Read every page of the dashboard, and the admin API, as operators would."""
    base = contender.config  # the operators' address
    column = "big_ms" if contender.name == BIG else "empty_ms"
    with httpx.Client(base_url=base, timeout=120, trust_env=False) as client:
        form = client.get("/login")
        csrf = form.text.partition('name="csrf" value="')[2].partition('"')[0]
        client.post("/login", data={"token": TOKEN, "csrf": csrf})
        for page in PAGES:
            headers = {"Authorization": f"Bearer {TOKEN}"} if "/v1/" in page else {}
            took = []
            for _ in range(options.count(5, 3, 1)):
                begun = time.perf_counter()
                answer = client.get(page, headers=headers)
                took.append((time.perf_counter() - begun) * 1000)
                assert answer.status_code == 200, (page, answer.status_code, answer.text[:300])
            report.sample(READS, page, **{column: median(took)})


def read_through(store: Path) -> None:
    """Have the system hold the file, as it does for a server that has run for a while."""
    with store.open("rb") as file:
        while file.read(1 << 24):
            pass


def command(options: Options, report: Report, houses: dict[str, House], size: Size) -> None:
    """Run the commands on both stores, then walk the whole audit."""
    for _ in range(options.rounds):
        for arguments in ASKED[: options.count(3, 3, 1)]:
            name = f"kb-mcp {' '.join(arguments[:-1])}"
            for column, house in (("big", houses[BIG]), ("empty", houses[EMPTY])):
                done = timed(house, *arguments, within_s=600)
                cells = {f"{column}_ms": done.seconds * 1000, f"{column}_MiB": done.peak_mib}
                report.sample(COMMANDS, name, **cells)
    for arguments in (("audit", "verify"), ("audit", "export", "--format", "jsonl")):
        name = f"kb-mcp {' '.join(arguments[:2])}"
        report.progress(f"{name} over {size.audit:,} rows")
        done = timed(houses[BIG], *arguments, within_s=3_600)
        small = timed(houses[EMPTY], *arguments, within_s=600)
        if "export" in arguments:
            assert done.lines >= size.audit, done
        report.sample(
            WALK, name, rows_per_s=size.audit / done.seconds, s=done.seconds,
            peak_MiB=done.peak_mib, peak_MiB_of_empty=small.peak_mib,
            peak_per_empty=done.peak_mib / small.peak_mib,
        )  # fmt: skip


def run(options: Options, report: Report, folder: Path) -> None:
    """Fill a store, and hold it beside an empty one."""
    size = SIZES[options.form]
    with ExitStack() as stack:
        up = stack.enter_context(upstream(folder, cores()[1]))
        runs = Runs(up)
        houses = {}
        for name in (EMPTY, BIG):
            houses[name] = House(folder / name.replace(" ", "-"), up.url)
            houses[name].folder.mkdir()
            (houses[name].folder / "token").write_text(houses[name].issue())
        begun = time.perf_counter()
        fill(houses[BIG], size)
        filled = time.perf_counter() - begun
        read_through(houses[BIG].store)
        gib = houses[BIG].store.stat().st_size / 2**30
        report.contender(
            BIG, f"{size.audit:,} audit rows in chains that verify, {size.operations:,} "
            f"operations, {size.keys:,} keys: {gib:.1f} GiB, filled in {filled:.0f} s",
        )  # fmt: skip
        report.contender(EMPTY, "one key")
        report.contender("both", CONFIG.replace("operators' listener off", "operators' listener"))
        serve(options, report, runs, houses)
        command(options, report, houses, size)


def judge(report: Report) -> None:
    """Compare with the targets."""
    rates = report.ratios(SERVING, "charges_per_s", BIG, EMPTY)
    report.target("charges/s, big / empty store", rates, "≥", 0.9)
    report.target("start in s", report.samples(SERVING, BIG, "start_s"), "≤", START_S)
    for table in (READS, COMMANDS):
        for name in report.tables[table]:
            pairs = zip(report.samples(table, name, "big_ms"),
                        report.samples(table, name, "empty_ms"), strict=True)  # fmt: skip
            above = [big - empty for big, empty in pairs]
            report.target(f"{name}, ms above the empty store's", above, "≤", LIMIT_MS)
    for name in report.tables[WALK]:
        flat = report.samples(WALK, name, "peak_per_empty")
        report.target(f"{name}: peak memory / the empty store's", flat, "≤", 1.25)


def main() -> None:
    """Run, and print what was found."""
    with measured(
        "big_store", "A store of ten million rows", __doc__, rounds=(5, 1, 1), within_s=7_200
    ) as (options, report, folder):
        run(options, report, folder)
        judge(report)


if __name__ == "__main__":
    main()
