"""A phone at the other end of `adb`, for measure_android.py, beside this file in a latency kit.

Whatever is wrong with the phone, its cable or adb ends the script with one sentence; a phone that is lost while
something runs on it is waited for.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time

ELF = {183: "arm64-v8a", 40: "armeabi-v7a", 62: "x86_64", 3: "x86", 243: "riscv64"}
STATUS = "proxyless-status="
MOST_OUTPUT = 2**20
TRIES = 5


class Lost(Exception):
    """The phone did not answer to the end of a command; its message is what came."""


def last_lines(text):
    """What a program said last, as a sentence quotes it."""
    lines = [ascii(line.strip())[1:-1] for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-400:] or "none"


def check_abi(program, abis):
    """Refuse a program of another processor; what is no ELF file is left to the phone."""
    with open(program, "rb") as stream:
        head = stream.read(20)
    if head[:4] == b"\x7fELF":
        machine = int.from_bytes(head[18:20], "little")
        abi = ELF.get(machine, f"machine {machine}")
        if abi not in abis:
            sys.exit(f"{program} is built for {abi}, and the phone runs {', '.join(abis)}; get the program of that ABI")


class Phone:
    """One phone at the other end of adb."""

    def __init__(self, options):
        self.adb, self.serial = options.adb, options.serial
        self.poll, self.reconnect = options.poll, options.reconnect
        # a command that hangs is a lost phone; drivers compile a graph for many seconds before its first run
        self.limit = 120 + 10 * options.seconds

    def call(self, *arguments, limit=None):
        """Return the status and the output, errors too, of one call of adb."""
        try:
            process = subprocess.Popen(
                [self.adb, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        except OSError as error:
            sys.exit(f"cannot start {self.adb} ({error.strerror}); install Android's platform tools, or give --adb")
        # a program that never stops printing would fill the memory, and one that hangs would never end
        timer = threading.Timer(limit or self.limit, process.kill)
        timer.start()
        assert process.stdout is not None
        try:
            output = process.stdout.read(MOST_OUTPUT)
            if len(output) == MOST_OUTPUT:
                process.kill()
            return process.wait(), output.decode("utf-8", "replace").replace("\r\n", "\n")
        finally:
            timer.cancel()
            process.kill()
            process.stdout.close()

    def attached(self):
        """Return the state of each phone by its serial number."""
        status, text = self.call("devices", limit=60)
        if status or "List of devices attached" not in text:
            sys.exit(f"`{self.adb} devices` ended with status {status}; its last lines: {last_lines(text)}")
        lines = text.split("List of devices attached", 1)[1].splitlines()
        # a state may have several words: "no permissions (...)"
        return dict(line.split(None, 1) for line in lines if len(line.split()) >= 2 and not line.startswith("*"))

    def find(self):
        """Choose the phone, or say why none can be used."""
        found = self.attached()
        listed = ", ".join(f"{serial} ({state.split()[0]})" for serial, state in found.items())
        if not self.serial:
            if not found:
                sys.exit("no phone is attached; plug it in, and allow USB debugging in its developer options")
            if len(found) > 1:
                sys.exit(f"{len(found)} devices are attached: {listed}; choose one with --serial")
            self.serial = next(iter(found))
        state = found.get(self.serial, "")
        if state.startswith("device"):
            return
        remedy = {
            "": f"attached are: {listed or 'none'}",
            "unauthorized": "unlock it, allow USB debugging for this computer, and start again",
            "offline": "plug its cable in again, or restart it",
            "no": "this user may not use the USB device; see https://developer.android.com/studio/run/device",
        }
        said = state or "not attached"
        sys.exit(
            f"the phone {self.serial} is {said}; {remedy.get(state.split()[0] if state else '', 'start it normally')}"
        )

    def shell(self, command):
        """Return the status and the output of a command on the phone.

        Raises:
            Lost: It came back without the command's end.
        """
        # old phones do not pass a status on, and an output that was cut looks like a whole one
        _, text = self.call("-s", self.serial, "shell", f"{command}\necho {STATUS}$?")
        said, mark, status = text.rpartition(STATUS)
        if not mark or not re.fullmatch(r"\d+\n?", status):
            raise Lost(text)
        return int(status), said

    def sure(self, command):
        """As `shell`, but wait for a phone that is lost."""
        for _ in range(TRIES):
            try:
                return self.shell(command)
            except Lost as lost:
                text = str(lost)
                self.wait_for(text)
        sys.exit(f"the phone {self.serial} is there, but cuts its answers {TRIES} times in a row: {last_lines(text)}")

    def push(self, sources, target):
        for _ in range(TRIES):
            status, text = self.call("-s", self.serial, "push", *map(str, sources), target, limit=600)
            if not status:
                return
            if "No space left" in text:
                sys.exit(
                    f"the phone has no space left for the kit in {target}; make room on it, or give another --remote"
                )
            self.wait_for(text)
        sys.exit(f"adb cannot copy to {target} (give another --remote); its last lines: {last_lines(text)}")

    def wait_for(self, said):
        """Wait until the phone is there again; what was on it has stayed."""
        start = time.monotonic()
        print(f"\nthe phone broke off ({last_lines(said)}); waiting for it", flush=True)
        while not self.attached().get(self.serial, "").startswith("device"):
            if time.monotonic() - start >= self.reconnect:
                sys.exit(
                    f"the phone {self.serial} did not come back within {self.reconnect:g} s; plug it in and start "
                    "again, which goes on from what is measured"
                )
            time.sleep(self.poll)

    def identity(self):
        """Return the model in words, Android's release, and the names of the processor's ABIs, the best first."""
        names = ("ro.product.manufacturer", "ro.product.model", "ro.build.version.release", "ro.product.cpu.abilist")
        status, text = self.sure("; ".join(f"getprop {name}" for name in names))
        values = [line.strip() for line in text.splitlines()]
        if status or len(values) != len(names) or not values[3]:
            sys.exit(f"the phone {self.serial} does not say what it is; it said: {last_lines(text)}")
        maker, model, release, abis = values
        return f"{maker} {model}".strip()[:200] or self.serial, f"{release[:40]}", abis.split(",")
