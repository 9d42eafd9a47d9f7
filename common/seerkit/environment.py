"""What a process needs before torch is loaded: importing this module, ahead of torch, settles its environment.

Commands do so first of all. A program of one's own that relies on samples being independent of batch size does the same, or
is started with MKL_CBWR=AUTO,STRICT: MKL and OpenMP read their variables when torch loads them, and never again.
"""

import os

SPINS, OPENMPS_OWN_SPINS = 3_000, 300_000
"""How often a thread of GNU OpenMP looks for new work before it sleeps: in the commands, and where nothing is set (GCC's manual
of libgomp). Threads that look take a core from whoever has work (eval/busy_machine.py)."""

ENVIRONMENT = {
    "MKL_CBWR": "AUTO,STRICT",  # one order of summation in MKL's products, whatever batch size and threads ("strict CNR")
    "GOMP_SPINCOUNT": str(SPINS),
}


def settle_environment() -> None:
    """Set what the user has not set; in vain for a process that has loaded torch already."""
    for name, value in ENVIRONMENT.items():
        if name != "GOMP_SPINCOUNT" or "OMP_WAIT_POLICY" not in os.environ:
            os.environ.setdefault(name, value)


settle_environment()
