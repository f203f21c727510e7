"""Executes the notebooks of this folder against a demo's lake.

    execute.py LAKE [--write]

Without `--write` each must run to its end and give the tables and sentences that are kept with it, and as many pictures;
pictures are not compared, because fonts differ between machines. With `--write` the outputs are kept, without anything that
tells when, where or by which version they were made.
"""

import os
import pathlib
import re
import sys
import tempfile

import nbclient
import nbformat
import traitlets.config

FOLDER = pathlib.Path(__file__).resolve().parent


def main():
    lake, is_kept = pathlib.Path(sys.argv[1]).resolve(), "--write" in sys.argv[2:]
    os.environ["VINCULO_LAKE"] = str(lake)
    with tempfile.TemporaryDirectory() as sockets:
        # The kernel is talked to without a port.
        settings = traitlets.config.Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}})
        wrong = sum(execute(path, lake, is_kept, settings) for path in sorted(FOLDER.glob("*.ipynb")))
    return 1 if wrong else 0


def execute(path, lake, is_kept, settings):
    """Executes one notebook, and gives how much of it is wrong."""
    wrong = 0
    before = nbformat.read(path, as_version=4)
    after = nbformat.read(path, as_version=4)
    place = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(after, timeout=300, kernel_name="python3", resources=place, config=settings).execute()
    clean(after)
    texts = " ".join(text for cell in after.cells for _, text in said(cell))
    for word in (str(lake), str(pathlib.Path.home()), os.uname().nodename):
        if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", texts):
            print(f"{path.name} tells of this machine: {word}")
            wrong += 1
    if is_kept:
        nbformat.write(after, path)
        return wrong
    for number, (old, new) in enumerate(zip(before.cells, after.cells)):
        if said(old) != said(new):
            print(f"{path.name}, cell {number}, gives\n{said(new)}\nbut is kept with\n{said(old)}")
            wrong += 1
    pictures = sum(kind == "image/png" for cell in after.cells for kind, _ in said(cell))
    print(f"{path.name}: {len(after.cells)} cells, {pictures} pictures")
    wrong += pictures < 2
    return wrong


def clean(notebook):
    """Takes away what differs from one execution to the next."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            output.get("metadata", {}).clear()


def said(cell):
    """What a cell gives: each kind of output, and its text; of pictures, that there is one."""
    given = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream":
            given.append((output.name, output.text))
        for kind, value in sorted(output.get("data", {}).items()):
            if kind == "text/plain" and "image/png" in output.data:
                continue
            given.append((kind, "" if kind.startswith("image/") else value))
    return given


if __name__ == "__main__":
    sys.exit(main())
