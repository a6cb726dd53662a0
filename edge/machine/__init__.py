"""What this machine is: its CPU, the memory a model may take, its accelerators, the backend it gets."""

from __future__ import annotations

from dataclasses import dataclass

from edge.machine.backends import Accelerator, Backend, Chosen, Rejected, accelerators, backends, choose
from edge.machine.cpu import Cpu, cpu
from edge.machine.gpus import devices
from edge.machine.installed import Installed, installed
from edge.machine.memory import Memory, memory
from edge.machine.system import System, here

__all__ = ["Accelerator", "Backend", "Chosen", "Cpu", "Host", "Memory", "Rejected", "examine", "host"]


@dataclass(frozen=True)
class Host:
    """This machine as this process may use it. Memory in bytes; every choice with its reason."""

    cpu: Cpu
    memory: Memory
    accelerators: tuple[Accelerator, ...]
    backends: tuple[Backend, ...]
    chosen: Chosen


def host() -> Host:
    """Look at this machine: some milliseconds, nothing loaded, nothing raised for what cannot be read."""
    return examine(here(), installed())


def examine(system: System, build: Installed) -> Host:
    """The same for any machine, also a recorded one."""
    processor = cpu(system)
    found = accelerators(devices(system, build.libraries), build)
    options = backends(found, build)
    return Host(processor, memory(system), found, options, choose(options, processor.isa))
