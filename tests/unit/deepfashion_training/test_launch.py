"""The supervision of a training: output, signals, exit codes, nothing left behind.

The processes that are supervised join through the real run_script, as the driver does, and train nothing. What starts
them does what accelerate does: the first that fails ends the others, a traceback, exit code 1.
"""

import math
import os
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from accelerate.commands.launch import launch_command_parser

from conftest import PROJECT
from deepfashion_training.launch import DRIVER as DEEPFASHION
from deepfashion_training.launch import accelerate_command
from deepfashion_training.preflight import start_log
from launch import interrupt, processes_with, read_until, start_on_a_terminal, wait_for_no_process_with, wait_until
from tryon.profiles import full, on_toy

SUPERVISE = """
import sys
from pathlib import Path
from deepfashion_training.launch import supervise
from tryon.cli import run_script

def main(argv):
    log, processes, driver, starter = argv
    sys.exit(supervise([sys.executable, "-c", starter, processes, driver, log], Path(log), int(processes))[0])

run_script(main)
"""
STARTER = """
import subprocess, sys, time
drivers = [subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[3]]) for _ in range(int(sys.argv[1]))]
while None in (codes := [driver.poll() for driver in drivers]) and not any(codes):
    time.sleep(0.01)
for driver in drivers:
    if driver.poll() is None:
        driver.terminate()
if any([driver.wait() for driver in drivers]):
    raise RuntimeError("the starter's own words")
"""
DRIVER = """
import os, sys, time
from tryon import cli, signals
BEFORE
def main(argv):
    MAIN
cli.run_script(main)
"""
TRAIN = """
    with signals.finishing_steps():
        print("training", flush=True)
        while not signals.asked_to_stop():
            time.sleep(0.01)
    print("saved", flush=True)
    raise SystemExit(signals.asked_to_stop())
"""
STARTERS_WORDS = "the starter's own words"


class Training:
    """Command line, log and temporary folder of a supervision."""

    def __init__(self, folder: Path):
        self.log = folder / "train.log"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.variables = {**os.environ, "PYTHONPATH": str(PROJECT), "TMPDIR": str(self.temporary)}
        self.variables.pop("TRAIN_TERMINAL", None)

    def command(self, main: str, processes: int = 1, before: str = "", starter: str = STARTER) -> list[str]:
        """Runs supervise on so many drivers with this main function. before: what they do before they join."""
        driver = DRIVER.replace("BEFORE", before).replace("MAIN", main.strip())
        return [sys.executable, "-c", SUPERVISE, str(self.log), str(processes), driver, starter]

    def start(self, main: str, **others) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(main, **others), cwd=PROJECT, env=self.variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, main: str, **others) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a supervision that nothing disturbs."""
        return ended(self.start(main, **others))

    def drivers(self) -> list[int]:
        """Ids of the processes that joined."""
        return [int(path.stem) for path in self.temporary.glob("train-*/*.pid")]

    def said(self) -> str:
        return self.log.read_text()


def ended(process: subprocess.Popen) -> tuple[int, str, str]:
    shown, said = process.communicate(timeout=20)
    return process.returncode, shown, said


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Training]:
    yield Training(tmp_path)
    wait_for_no_process_with(str(tmp_path))


def assert_gone(training: Training) -> None:
    """Nothing is left: no process, no folder."""
    wait_for_no_process_with(str(training.log), 5)
    assert list(training.temporary.iterdir()) == []


def test_accelerate_is_told_the_runs_settings() -> None:
    config = replace(on_toy(full()), num_processes=2, mixed_precision="bf16", output_dir="/runs/one")
    *python, module = accelerate_command(config, DEEPFASHION, ["--toy"])[:3]
    assert (python, module) == ([sys.executable, "-m"], "accelerate.commands.launch")
    told = launch_command_parser().parse_args(accelerate_command(config, DEEPFASHION, ["--toy"])[3:])
    assert (told.num_processes, told.multi_gpu, told.cpu, told.mixed_precision) == (2, True, False, "bf16")
    assert told.num_cpu_threads_per_process == math.ceil(len(os.sched_getaffinity(0)) / 2)
    assert (told.module, told.training_script, told.training_script_args) == (
        True, DEEPFASHION, ["--toy", "--output_dir", "/runs/one"]
    )  # fmt: skip
    told = launch_command_parser().parse_args(accelerate_command(replace(config, num_processes=1), DEEPFASHION, [])[3:])
    assert (told.num_processes, told.multi_gpu, told.cpu) == (1, False, True)


def test_a_run_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the run's folder /dev/null/run cannot be written \(Not a directory\)"):
        start_log(replace(full(), output_dir="/dev/null/run"), [])


def test_output_goes_to_stdout_and_into_the_log_as_plain_lines(training: Training) -> None:
    main = 'os.write(1, "bar 1%\\rbar 2%\\rdone\\nä\\n".encode()); os.write(2, b"warned\\nno end")'
    process = subprocess.Popen(
        training.command(main), cwd=PROJECT, env=training.variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    shown, said = process.communicate(timeout=20)
    assert (process.returncode, said) == (0, b"")
    assert shown == "bar 1%\rbar 2%\rdone\nä\nwarned\nno end".encode()
    assert training.log.read_text() == "done\nä\nwarned\nno end\n"
    assert_gone(training)


def test_two_processes_that_end_well_end_well(training: Training) -> None:
    code, shown, said = training.run("os.write(1, b'done\\n')", processes=2)
    assert (code, shown, said) == (0, "done\ndone\n", "")
    assert_gone(training)


@pytest.mark.parametrize(
    ("main", "code", "words"),
    [
        ("raise SystemExit(124)", 124, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise RuntimeError('the driver broke')", 1, "RuntimeError: the driver broke"),
        ("from tryon.profiles import resolve; resolve({'profile': 'h100'}, 0)", 1, "error: the h100 profile"),
    ],
)
def test_the_first_failure_is_the_exit_code(training: Training, main: str, code: int, words: str) -> None:
    found, shown, said = training.run(main)
    assert (found, said) == (code, "")
    assert words in shown and shown == training.said()
    assert STARTERS_WORDS not in shown
    assert_gone(training)


def test_what_the_starter_says_is_shown_where_no_process_spoke(training: Training) -> None:
    code, shown, said = training.run("pass", starter="raise RuntimeError('no such configuration')")
    assert (code, shown) == (1, "")
    assert "RuntimeError: no such configuration" in said and said == training.said()
    assert_gone(training)


@pytest.mark.parametrize(
    ("number", "processes"),
    [(signal.SIGHUP, 1), (signal.SIGINT, 1), (signal.SIGUSR1, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 2)],
)
def test_a_signal_goes_on_to_the_processes(training: Training, number: signal.Signals, processes: int) -> None:
    process = training.start(TRAIN, processes=processes)
    wait_until(lambda: training.log.exists() and training.said().count("training") == processes, every=0.01)
    process.send_signal(number)
    code, shown, said = ended(process)
    assert (code, said) == (128 + number, "")
    name = "SIGTERM" if number == signal.SIGHUP else number.name
    assert shown.count("saved") == shown.count(f"stopped by {name}") == processes
    assert shown == training.said()
    assert_gone(training)


def test_a_second_signal_goes_on_too_and_the_last_is_the_exit_code(training: Training) -> None:
    process = training.start(TRAIN.replace("signals.asked_to_stop()", "False"))
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "SIGUSR1: saving after this step; a second one stops at once\n"
    time.sleep(1.2)  # one that comes sooner is taken for the first
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert training.said().splitlines()[-1] == "stopped by SIGUSR1"
    assert_gone(training)


def test_an_error_after_a_signal_is_the_exit_code(training: Training) -> None:
    process = training.start(TRAIN.replace('print("saved", flush=True)', "raise RuntimeError('the disk is full')"))
    assert process.stdout.readline() == "training\n"
    process.send_signal(signal.SIGINT)
    code, shown, _ = ended(process)
    assert code == 1 and "RuntimeError: the disk is full" in shown


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_before_any_process_listens_ends_everything(training: Training, number: signal.Signals) -> None:
    process = training.start("pass", processes=2, before="time.sleep(600)")
    wait_until(lambda: len(processes_with(str(training.log))) == 5, every=0.01)
    process.send_signal(number)
    sentence = f"stopped by {number.name} before the training began\n"
    assert ended(process) == (128 + number, "", sentence)
    assert training.said() == sentence
    assert_gone(training)


def test_a_signal_while_processes_are_started_is_not_lost(training: Training) -> None:
    """At moments around the forks, from before the pipe is there to after the process has joined."""
    for milliseconds in range(0, 120, 15):
        process = training.start(TRAIN)
        wait_until(lambda: any(training.temporary.glob("train-*")), every=0.0005)
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGINT)
        code, shown, said = ended(process)
        assert code == 130 and "Traceback" not in shown + said, f"after {milliseconds} ms: {shown}{said}"
        assert_gone(training)


def test_a_signal_after_the_trainings_end_changes_nothing(training: Training) -> None:
    """A process that has its output still open keeps the launcher waiting."""
    process = training.start("if not os.fork(): time.sleep(0.7)\n    else: print('done', flush=True); os._exit(0)")
    assert process.stdout.readline() == "done\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, "", "")


def test_a_killed_process_is_a_failure_in_words(training: Training) -> None:
    process = training.start(TRAIN)
    assert process.stdout.readline() == "training\n"
    os.kill(*training.drivers(), signal.SIGKILL)
    sentence = "error: a training process was killed from outside, most likely for lack of memory\n"
    assert ended(process) == (1, "", sentence)
    assert training.said() == f"training\n{sentence}"
    assert_gone(training)


def test_one_of_two_processes_killed_stops_the_other(training: Training) -> None:
    process = training.start(TRAIN, processes=2)
    wait_until(lambda: training.log.exists() and training.said().count("training") == 2, every=0.01)
    os.kill(training.drivers()[0], signal.SIGKILL)
    code, shown, said = ended(process)
    assert (code, said) == (
        1, "error: a training process was killed from outside, and the others stopped with it\n"
    )  # fmt: skip
    assert shown.count("saved") == 1
    assert_gone(training)


def test_a_killed_starter_leaves_no_process(training: Training) -> None:
    process = training.start("pass", before="time.sleep(600)")

    # A child that is being started has its parent's command line for a moment: what sleeps alone is the driver.
    def drivers() -> set[int]:
        return {*processes_with("time.sleep(600)")} & {*processes_with(str(training.log))} - {
            *processes_with(STARTERS_WORDS)
        }

    wait_until(lambda: bool(drivers()), every=0.01)
    os.kill(psutil.Process(*drivers()).ppid(), signal.SIGKILL)
    code, shown, said = ended(process)
    assert code == 137 and said.startswith("error: a training process was killed from outside")
    assert_gone(training)


def test_a_killed_launcher_does_not_end_the_training_nor_its_log(training: Training) -> None:
    process = training.start(TRAIN)
    assert process.stdout.readline() == "training\n"
    process.kill()
    process.wait()
    os.kill(*training.drivers(), signal.SIGTERM)
    wait_until(lambda: "stopped by SIGTERM" in training.said(), every=0.01)


def test_a_process_whose_launcher_is_gone_does_not_wait_for_it(training: Training) -> None:
    process = training.start(TRAIN, before="time.sleep(0.5)")
    wait_until(lambda: len(processes_with(str(training.log))) == 4, every=0.01)
    process.kill()
    process.communicate(timeout=20)
    wait_for_no_process_with(str(training.log), 10)
    assert training.drivers() == [], "it left instead of joining"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_is_ignored_at_the_start_stays_ignored(training: Training, number: signal.Signals) -> None:
    """As nohup does it, and a script with what it starts in the background. The terminal goes, and the log goes on."""
    main = "print('one', flush=True); time.sleep(0.5); print('two')"
    process, controller = start_on_a_terminal(training.command(main), training.variables, [signal.SIGHUP, number])
    read_until(controller, "one")
    process.send_signal(number)
    os.close(controller)
    assert process.wait(timeout=20) == 0
    assert training.said() == "one\ntwo\n"


def test_a_terminal_that_goes_ends_the_training_and_the_log_has_it_all(training: Training) -> None:
    process, controller = start_on_a_terminal(training.command(TRAIN), training.variables)
    read_until(controller, "training")
    os.close(controller)
    assert process.wait(timeout=20) == 128 + signal.SIGHUP
    assert training.said().splitlines()[-2:] == ["saved", "stopped by SIGTERM"]


def test_ctrl_c_reaches_each_process_once_and_through_the_launcher(training: Training) -> None:
    main = """
    import signal
    came = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    print(os.environ["TRAIN_TERMINAL"], "terminal", flush=True)
    while not came:
        time.sleep(0.01)
    time.sleep(0.3)
    print(len(came), "came\\rdone", flush=True)
    raise SystemExit(130)
    """
    process, controller = start_on_a_terminal(training.command(main), training.variables)
    attributes = termios.tcgetattr(controller)
    attributes[3] |= termios.TOSTOP  # stops a process in the background that writes, if that lets it
    termios.tcsetattr(controller, termios.TCSANOW, attributes)
    read_until(controller, "1 terminal")
    interrupt(controller)
    assert "1 came\rdone" in read_until(controller, "closed by the launcher's end", 20)
    assert process.wait(timeout=20) == 130
    assert training.said() == "1 terminal\ndone\n"
    os.close(controller)


def test_a_full_disk_does_not_end_the_output(training: Training) -> None:
    training.log.symlink_to("/dev/full")
    lines = "\n".join(f"line {number}" for number in range(9))
    code, shown, said = training.run(f"print({lines!r}); os.kill(os.getpid(), 9)")
    assert (code, shown) == (1, f"{lines}\n") and said.startswith("error: a training process was killed")
