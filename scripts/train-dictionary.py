#!/usr/bin/env python3
"""Trains the dictionary that bodies in the state are compressed with.

    train-dictionary.py BASE_URL ID PASSWORD DICT_ID OUT

Asks a simulated Belvo (`vinculo simulate --people 1000 --no-limit`) for its records, takes each as it is written, and trains on
half of them; prints how small the other half becomes. Needs `zstandard` of PyPI. A dictionary that was released is never
changed: the bodies that were written with it are read with it. Another one gets the next DICT_ID and a file of its own.
"""

import base64
import json
import sys
import urllib.request

import zstandard

SIZE = 8192
LEVEL = 1


def records(base_url, path, credentials):
    """The text of each record of a list."""
    decoder = json.JSONDecoder()
    headers = {"Authorization": f"Basic {credentials}", "User-Agent": "train-dictionary"}
    text = urllib.request.urlopen(urllib.request.Request(base_url + path, headers=headers)).read().decode()
    at = text.index("[", text.index('"results"')) + 1
    while text[at] != "]":
        if text[at] in ", \n":
            at += 1
            continue
        start, (_, at) = at, decoder.raw_decode(text, at)
        yield text[start:at].encode()


def main():
    base_url, user, password, dict_id, out = sys.argv[1:]
    credentials = base64.b64encode(f"{user}:{password}".encode()).decode()
    samples, others = [], []
    for number, link in enumerate(records(base_url, "/api/links/?page_size=1000", credentials)):
        for path in ("/api/br/employments/", "/api/owners/"):
            of_link = records(base_url, f"{path}?link={json.loads(link)['id']}&page_size=1000", credentials)
            (samples if number % 2 else others).extend(of_link)
    dictionary = zstandard.train_dictionary(SIZE, samples, dict_id=int(dict_id), level=LEVEL)
    with open(out, "wb") as file:
        file.write(dictionary.as_bytes())
    plain = zstandard.ZstdCompressor(level=LEVEL)
    with_it = zstandard.ZstdCompressor(level=LEVEL, dict_data=dictionary)
    size = lambda pack: sum(len(pack(record)) for record in others)
    print(
        f"{len(samples)} samples; {len(others)} others: {size(bytes)} bytes, {size(plain.compress)} compressed, "
        f"{size(with_it.compress)} with it"
    )


if __name__ == "__main__":
    main()
