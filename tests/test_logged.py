"""What a command prints is kept, whatever becomes of the folder; its code and signals pass."""

import signal
import subprocess
import sys
import time

import pytest

from sr1_jax import logged


def start(folder, code, *flags):
    command = [sys.executable, "-m", "sr1_jax.logged", f"--folder={folder}", *flags]
    command += ["--", sys.executable, "-u", "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kept(folder):
    return "".join(path.read_text() for path in sorted(folder.glob("*.log")))


@pytest.mark.parametrize(("end", "code"), [("exit(75)", 75), ("os.kill(os.getpid(), 9)", 137)])
def test_output_and_exit_code_pass_and_are_kept(tmp_path, end, code):
    script = f"import os, sys; print('out'); print('--err', file=sys.stderr); {end}"
    running = start(tmp_path / "logs", script)
    assert running.communicate(timeout=60)[0] == "out\n--err\n"
    assert running.returncode == code
    assert kept(tmp_path / "logs") == "out\n--err\n"
    (path,) = (tmp_path / "logs").iterdir()
    assert path.name.endswith("Z.0.log")


def test_what_was_printed_is_there_before_the_end_and_sigterm_is_handed_on(tmp_path):
    script = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit(80)))\n"
        "print('step 1')\n"
        "time.sleep(60)"
    )
    running = start(tmp_path, script, "--seconds=0.05")
    until = time.monotonic() + 60
    while kept(tmp_path) != "step 1\n":
        assert time.monotonic() < until
        time.sleep(0.05)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 80
    assert kept(tmp_path) == "step 1\nsaved\n"
    running.communicate()


def test_a_command_that_is_not_there(tmp_path):
    command = [sys.executable, "-m", "sr1_jax.logged", f"--folder={tmp_path}", "--", "/no/such"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "/no/such cannot be run" in done.stderr


def test_what_is_printed_while_a_part_is_written_is_kept(tmp_path, monkeypatch):
    log = logged.KeptLog(str(tmp_path), "host", part_bytes=4)
    log.write(b"on")
    write = log._write_whole

    def printing(name, content):
        log.write(b"e\n!")  # fills the part
        monkeypatch.setattr(log, "_write_whole", write)
        write(name, content)

    monkeypatch.setattr(log, "_write_whole", printing)
    assert log.upload() and log.upload()
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"host.0.log": "one\n!"}


def test_a_folder_that_comes_back_gets_everything(tmp_path, capsys):
    (tmp_path / "logs").touch()  # a file: nothing can be written below it
    log = logged.KeptLog(str(tmp_path / "logs"), "host", part_bytes=4)
    log.write(b"one\n")
    assert not log.upload() and not log.upload()
    assert capsys.readouterr().err.count("the log cannot be kept in") == 1
    (tmp_path / "logs").unlink()
    log.write(b"two")
    assert log.upload()
    log.write(b"!\n")
    assert log.upload()
    found = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert found == {"host.0.log": "one\n", "host.1.log": "two!\n"}
