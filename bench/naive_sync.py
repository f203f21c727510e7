"""What an able engineer writes in an afternoon instead of this program: asyncio, aiohttp, orjson, pyarrow.

    naive_sync.py --base-url URL --id ID --password PASSWORD --links N --out FOLDER [--owners] [--concurrency C]

Lists the links of a server that speaks Belvo's contract, fetches the employments of each (one link a request), and writes
three Parquet tables. Prints {"links", "salary_rows", "seconds"}. It is honest in that nothing slows it down on purpose, and
naive in what it leaves out: no state, no retries, no request budget, no keys, and amounts are floats.
"""

import argparse
import asyncio
import json
import pathlib
import time

import aiohttp
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

INSTANT = pa.timestamp("us", "UTC")
EMPLOYMENTS = {
    "link_id": pa.string(), "employment_id": pa.string(), "employer_name": pa.string(), "employer_code": pa.string(),
    "economic_activity": pa.string(), "start_date": pa.date32(), "end_date": pa.date32(), "created_at": INSTANT,
    "collected_at": INSTANT,
}
OCCUPATIONS = {
    "link_id": pa.string(), "employment_id": pa.string(), "start_date": pa.date32(), "end_date": pa.date32(),
    "description": pa.string(), "name": pa.string(), "locale": pa.string(),
}
SALARIES = {
    "link_id": pa.string(), "employment_id": pa.string(), "month": pa.string(), "type": pa.string(),
    "base_amount": pa.float64(), "retained_amount": pa.float64(), "currency": pa.string(),
}


async def pages(session, path, **query):
    """Every row of a list, page after page."""
    query = {"page_size": 1000, **query}
    url, params = path, query
    while url:
        async with session.get(url, params=params) as response:
            response.raise_for_status()
            page = orjson.loads(await response.read())
        for row in page["results"]:
            yield row
        url, params = page["next"], None


class Columns:
    """The three tables as lists of columns; one tuple a row is faster than one dict, and turned around once at the end."""

    def __init__(self):
        self.employments, self.occupations, self.salaries = [], [], []

    def add(self, job):
        link, id, employer = job["link"], job["id"], job["employer_data"]
        self.employments.append((
            link, id, employer["name"], employer["code"], employer["economic_activity"], job["start_date"], job["end_date"],
            job["created_at"], job["collected_at"],
        ))
        self.occupations.extend([
            (link, id, o["start_date"], o["end_date"], o["description"], o["name"], o["locale"]) for o in job["occupations"]
        ])
        self.salaries.extend([
            (link, id, s["month"], s.get("type"), s["base_amount"], s["retained_amount"], s["currency"])
            for s in job["salaries"]
        ])


def write(path, rows, schema):
    arrays = []
    for values, kind in zip(zip(*rows), schema.values()):
        # Arrow reads dates and instants from text faster than Python does.
        text = pa.types.is_date(kind) or pa.types.is_timestamp(kind)
        array = pa.array(values, pa.string() if text else kind)
        arrays.append(array.cast(kind) if text else array)
    pq.write_table(pa.table(arrays, names=list(schema)), path, compression="zstd")


async def sync(options):
    headers = {"Authorization": aiohttp.encode_basic_auth(options.id, options.password)}
    connector = aiohttp.TCPConnector(limit=options.concurrency)
    columns, owners = Columns(), []
    async with aiohttp.ClientSession(options.base_url, headers=headers, connector=connector) as session:
        links = []
        async for link in pages(session, "/api/links/"):
            links.append(link["id"])
            if len(links) == options.links:
                break
        waiting = iter(links)

        async def worker():
            for link in waiting:
                async for job in pages(session, "/api/br/employments/", link=link):
                    columns.add(job)
                if options.owners:
                    async for owner in pages(session, "/api/owners/", link=link):
                        owners.append(owner)

        await asyncio.gather(*(worker() for _ in range(options.concurrency)))

    options.out.mkdir(parents=True, exist_ok=True)
    write(options.out / "employments.parquet", columns.employments, EMPLOYMENTS)
    write(options.out / "occupations.parquet", columns.occupations, OCCUPATIONS)
    write(options.out / "salaries.parquet", columns.salaries, SALARIES)
    if options.owners:
        pq.write_table(pa.Table.from_pylist(owners), options.out / "owners.parquet", compression="zstd")
    return len(links), len(columns.salaries)


def main():
    arguments = argparse.ArgumentParser(description="A hand-written sync, to compare with.")
    arguments.add_argument("--base-url", required=True)
    arguments.add_argument("--id", required=True)
    arguments.add_argument("--password", required=True)
    arguments.add_argument("--links", type=int, required=True, help="stop after this many links")
    arguments.add_argument("--out", type=pathlib.Path, required=True)
    arguments.add_argument("--owners", action="store_true", help="fetch owners too")
    arguments.add_argument("--concurrency", type=int, default=16)
    options = arguments.parse_args()

    # Imports are not counted: a service would pay them once.
    start = time.perf_counter()
    links, salary_rows = asyncio.run(sync(options))
    seconds = time.perf_counter() - start
    if links != options.links or not salary_rows:
        raise SystemExit(f"naive_sync: {links} links and {salary_rows} salary rows; {options.links} links were asked for")
    print(json.dumps({"links": links, "salary_rows": salary_rows, "seconds": round(seconds, 4)}))


if __name__ == "__main__":
    main()
