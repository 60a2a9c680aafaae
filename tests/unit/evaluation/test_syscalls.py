"""The filter of system calls: its numbers against the kernel's headers, its verdicts by an evaluator here."""

import platform
import re
import struct
from pathlib import Path

import pytest

from selfalign.evaluation.syscalls import _REFUSED, syscall_filter


@pytest.mark.parametrize(
    ("column", "header"),
    [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")],
)
def test_the_numbers_are_those_of_the_kernel(column, header):
    if not Path(header).exists():
        pytest.skip("the kernel's headers are not installed")
    stated = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text()))
    for name, numbers in _REFUSED.items():
        assert numbers[column] == (int(stated[name]) if name in stated else None), name


def verdict(program, architecture, number):
    """Run a classic BPF program of the five instructions that the filter has, on one call."""
    data = struct.pack("=II", number, architecture)
    lines = [struct.unpack_from("=HBBI", program, place) for place in range(0, len(program), 8)]
    place = value = 0
    while True:
        code, if_true, if_false, constant = lines[place]
        place += 1
        match code:
            case 0x20:
                (value,) = struct.unpack_from("=I", data, constant)
            case 0x15:
                place += if_true if value == constant else if_false
            case 0x35:
                place += if_true if value >= constant else if_false
            case 0x06:
                return constant


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_the_filter_refuses_the_calls_and_nothing_else(machine, column, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: machine)
    program = syscall_filter()
    here, other = {"x86_64": (0xC000003E, 0x40000003), "aarch64": (0xC00000B7, 0x40000028)}[machine]
    refused_numbers = {numbers[column] for numbers in _REFUSED.values()}
    for number in range(600):
        expected = 0x00050000 | 1 if number in refused_numbers else 0x7FFF0000
        assert verdict(program, here, number) == expected, number
        assert verdict(program, other, number) == 0x80000000
    assert verdict(program, here, 0x40000000 | 57) == 0x00050000 | 1
