"""A whole machine for tests: Debian with systemd as process 1 and control groups of version 2, under qemu.

Needs root, qemu-system-x86_64, debootstrap and mke2fs; `make guest` runs what lies here. The processor is emulated, so that
no rights on a hypervisor are needed: things take ten times as long as they would on the host.
"""
