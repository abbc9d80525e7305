"""A whole machine for tests: Debian with systemd as process 1 and control groups of version 2, under qemu.

Needs root, qemu-system-x86_64, debootstrap and mke2fs; `make guest` runs what lies here. Where KVM can run a kernel, the guest
has this machine's processor; else one is emulated, and things take ten times as long as they would on the host.
"""
