"""What is measured and documented, each benchmark a module with a command line."""

from hardware.child_process import wait_passively

wait_passively()
