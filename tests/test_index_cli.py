"""The program that builds an index."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from small_encoders import write_bert

from sr1_jax import cli
from sr1_jax.index import main
from sr1_jax.retrieval import BM25Retriever, index_copies
from sr1_jax.retrieval.dense_search import VectorSearch
from sr1_jax.retrieval.open import open_as_built
from sr1_jax.retrieval.vector_files import read_vectors


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    texts = ["the cat runs", "a dog barks"]
    rows = ({"id": str(i), "contents": f'"T{i}"\n{text}'} for i, text in enumerate(texts))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_builds_and_reports(corpus, tmp_path, capsys):
    index = tmp_path / "index"
    main(["index", f"--corpus={corpus}", f"--index={index}"])
    out, err = capsys.readouterr()
    under_way, done = out.splitlines()
    assert under_way == f"indexing {corpus} …"  # before it begins
    assert done.startswith("2 passages indexed in ") and done.endswith(f" s: {index}")
    assert err == ""
    assert [p.id for p in BM25Retriever.load(index).search(["running"], 3)[0]] == ["0"]


def test_flags_reach_the_index(corpus, tmp_path):
    index = tmp_path / "index"
    options = ["--k1=1.2", "--b=0.75", "--stemmer=none", "--stopwords=none"]
    main(["index", f"--corpus={corpus}", f"--index={index}", *options])
    manifest = BM25Retriever.load(index).manifest
    assert {key: manifest[key] for key in ("k1", "b", "stemmer", "stopwords")} == {
        "k1": 1.2,
        "b": 0.75,
        "stemmer": None,
        "stopwords": None,
    }


@pytest.fixture
def failed(tmp_path, monkeypatch, capsys):
    """Function of arguments -> the one line on stderr of a program that ends with code 2."""
    monkeypatch.delenv("SR1_JAX_TRACEBACK", raising=False)

    def run(*arguments):
        argv = ["index", *(argument.format(tmp=tmp_path) for argument in arguments)]
        monkeypatch.setattr(sys, "argv", argv)
        with pytest.raises(SystemExit) as exit_info:
            cli.run(main)
        error = capsys.readouterr().err
        assert exit_info.value.code == 2
        assert error.startswith("error: ") and error.count("\n") == 1
        return error

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus={tmp}/none.jsonl", "--index={tmp}/index"], "none.jsonl: no such file"),
        (["--corpus={tmp}/corpus.jsonl", "--index={tmp}"], "not empty"),
        (["--corpus={tmp}/corpus.jsonl"], "--index"),
        (["--corpus={tmp}/corpus.jsonl", "--index=gs://b/x"], "name a folder on a disk"),
        (["--corpus={tmp}/corpus.jsonl", "--index={tmp}/index", "--k1=x"], "--k1"),
        (["--corpus={tmp}/corpus.jsonl", "--index={tmp}/index", "--b=7"], "retrieval.b must lie"),
        (["--corpus={tmp}/corpus.jsonl", "--index={tmp}/index", "--nope=7"], "nope"),
        (["--corpus={tmp}/corpus.jsonl", "--index={tmp}/index", "more"], "unexpected argument"),
    ],
)
def test_errors_take_one_line(corpus, tmp_path, failed, arguments, message):
    assert message in failed(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """gs://bucket/…, which lies in a local folder."""
    real = index_copies.epath.Path
    place = tmp_path / "bucket"

    def path(text):
        return real(str(text).replace("gs://bucket", str(place)))

    monkeypatch.setattr(index_copies.epath, "Path", path)
    return place


@pytest.mark.parametrize("kept", [True, False])
def test_an_index_in_a_bucket(corpus, bucket, tmp_path, capsys, kept):
    index = tmp_path / "index"
    command = ["index", f"--corpus={corpus}", "--output=gs://bucket/a/index", "--workers=1"]
    main([*command, f"--index={index}"] if kept else command)
    assert "copied: gs://bucket/a/index" in capsys.readouterr().out
    assert index.exists() == kept
    found = BM25Retriever.load(Path(bucket / "a" / "index")).search(["cat"], 1)
    assert found == BM25Retriever.build(corpus, tmp_path / "other").search(["cat"], 1)
    (bucket / "a" / "index" / "stray").touch()
    with pytest.raises(ValueError, match=r"--output=gs://bucket/a/index is not replaced: it holds"):
        main(command)
    (bucket / "a" / "index" / "stray").unlink()
    main(command)  # an index gives way to an index


def test_a_copy_that_breaks_off_is_no_index(corpus, bucket, tmp_path, monkeypatch):
    """Nor is what was there before, half of which is gone; the next copy mends it."""
    command = ["index", f"--corpus={corpus}", "--output=gs://bucket/index", "--workers=1"]
    main(command)
    copy, left = shutil.copyfileobj, 3

    def breaks(source, target, size):
        nonlocal left
        left -= 1
        if not left:
            raise ConnectionResetError("cut")
        copy(source, target, size)

    monkeypatch.setattr(index_copies.shutil, "copyfileobj", breaks)
    with pytest.raises(ConnectionResetError):
        main(command)
    with pytest.raises(ValueError, match="not a complete"):
        BM25Retriever.load(bucket / "index")
    monkeypatch.undo()
    main([*command[:2], f"--output={bucket / 'index'}", "--workers=1"])
    assert len(BM25Retriever.load(bucket / "index"))


def test_an_output_that_cannot_be_reached_is_told_first(corpus, failed, tmp_path):
    error = failed(f"--corpus={corpus}", "--output=nowhere://bucket/index")
    assert "--output=nowhere://bucket/index: it cannot be read" in error


def test_a_bucket_is_refused(corpus, failed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    error = failed(f"--corpus={corpus}", "--index=s3://bucket/index")
    assert "--index=s3://bucket/index" in error
    assert not (tmp_path / "gs:").exists()


def test_help(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["index", "--help"])
    assert exit_info.value.code == 0
    out = capsys.readouterr().out
    assert "--corpus" in out
    assert "--stopwords" in out


def test_as_a_program(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "0", "contents": "T\\nx"}\n{oops\n')
    command = [sys.executable, "-m", "sr1_jax.index", f"--corpus={path}", f"--index={tmp_path}/i"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == f"indexing {path} …\n"
    assert done.stderr.startswith(f"error: {path}:2: malformed JSON")
    assert done.stderr.count("\n") == 1


def test_a_dense_index(corpus, tmp_path, capsys):
    encoder = write_bert(tmp_path / "e5")
    index, export = tmp_path / "index", tmp_path / "vectors.faiss"
    flags = ["--kind=dense", f"--encoder={encoder}", "--dtype=float32", f"--export={export}"]
    main(["index", f"--corpus={corpus}", f"--index={index}", *flags])
    told = capsys.readouterr().out.splitlines()
    assert told[1].startswith("encoder: mean of at most 32 tokens") and "'query: '" in told[1]
    assert told[3] == f"vectors written: {export}"
    vectors = read_vectors(export)
    assert (vectors.count, vectors.width) == (2, 24)
    assert len(open_as_built(index).search(["the cat"], 3)[0]) == 2
    other = tmp_path / "other"
    more = [f"--vectors={export}", "--faiss=HNSW8"]
    main(["index", f"--corpus={corpus}", f"--index={other}", *flags[:3], *more])
    assert (other / "vectors.npy").read_bytes() == (index / "vectors.npy").read_bytes()
    assert len(list(tmp_path.glob("other.HNSW8.*.faiss"))) == 1


def test_a_dense_index_is_not_put_on_the_devices(corpus, tmp_path, monkeypatch):
    """A machine that builds one of millions of passages need not hold it."""
    monkeypatch.setattr(VectorSearch, "__init__", lambda *rest, **more: pytest.fail("placed"))
    encoder = write_bert(tmp_path / "e5")
    flags = ["--kind=dense", f"--encoder={encoder}", f"--index={tmp_path / 'index'}"]
    main(["index", f"--corpus={corpus}", *flags])
    assert (tmp_path / "index" / "index.json").is_file()


def test_a_dense_index_is_built_where_it_stays(corpus, tmp_path, failed, monkeypatch):
    flags = ["--corpus={tmp}/corpus.jsonl", "--kind=dense", f"--encoder={tmp_path}"]
    assert "--index is missing: a dense index takes hours" in failed(*flags, "--output={tmp}/out")
    more = ["--index={tmp}/index", "--faiss=HNSW8", "--output={tmp}/out"]
    assert "which --output does not copy: leave one of them out" in failed(*flags, *more)
    monkeypatch.setattr("jax.process_count", lambda: 4)
    assert "one host of several, each of which would embed" in failed(*flags, "--index={tmp}/index")


def test_settings_of_a_file(corpus, tmp_path):
    encoder = write_bert(tmp_path / "e5")
    file = tmp_path / "own.py"
    file.write_text(
        "from sr1_jax.training.settings import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.retrieval.kind, config.retrieval.k1 = 'dense', 1.5\n"
        f"    config.retrieval.dense.encoder = {str(encoder)!r}\n"
        "    return config\n"
    )
    where = [f"--corpus={corpus}", f"--index={tmp_path / 'index'}", f"--config={file}"]
    main(["index", *where, "--config.retrieval.dense.dtype=int8"])
    assert open_as_built(tmp_path / "index").manifest["dtype"] == "int8"
    shutil.rmtree(tmp_path / "index")
    main(["index", *where, "--kind=bm25", "--b=0.5"])
    manifest = open_as_built(tmp_path / "index").manifest
    assert (manifest["k1"], manifest["b"]) == (1.5, 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind=dense"], "retrieval.dense.encoder is empty"),
        (["--kind=dense", "--encoder=/none"], "retrieval.dense.encoder=/none: there is no"),
        (["--faiss=HNSW8"], "--faiss says nothing of a bm25 index"),
        (["--kind=dense", "--k1=1"], "--k1 says nothing of a dense index"),
        (["--encoder=x"], "--encoder says nothing of a bm25 index"),
        (["--kind=http"], "--kind"),
        (["--kind=dense", "--encoder={tmp}", "--export=x.bin"], "name a file .npy"),
    ],
)
def test_flags_that_do_not_fit(corpus, tmp_path, failed, arguments, message):
    where = ["--corpus={tmp}/corpus.jsonl", "--index={tmp}/index"]
    assert message in failed(*where, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]
