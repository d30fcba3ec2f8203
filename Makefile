# Run as root on Debian 12, with nothing but make there: each target does all of its set-up itself. Without root, and
# with the packages there, they do what they can.

# Debian packages: to run, to show (`make demo`), and to test.
RUN_PACKAGES := python3 python3-venv fuse3
# Besides, what makes it fast: a part is compiled where there is a compiler.
BUILD_PACKAGES := $(RUN_PACKAGES) gcc libc6-dev python3-dev
DEMO_PACKAGES := $(RUN_PACKAGES) util-linux busybox-static
TEST_PACKAGES := $(BUILD_PACKAGES) $(DEMO_PACKAGES) python3-pip uidmap attr acl libcap2-bin e2fsprogs xfsprogs btrfs-progs strace inotify-tools bindfs \
	fuse-overlayfs sshfs openssh-sftp-server make dpkg-dev debootstrap podman crun buildah systemd-container

# Those that shiftfs is measured beside, and what does the work.
BENCH_PACKAGES := $(TEST_PACKAGES) mergerfs unionfs-fuse fio git tar

# The virtual environment of this checkout, where every user may execute it.
CACHE ?= $(if $(filter 0,$(shell id -u)),/var/cache,$(or $(XDG_CACHE_HOME),$(HOME)/.cache))
VENV ?= $(CACHE)/shiftfs/venv-$(shell printf %s '$(CURDIR)' | sha256sum | cut -c1-12)
PYTHON := $(VENV)/bin/python

# Where `make install` puts the program, and the directory of the links to it.
PREFIX ?= /opt/shiftfs
BINDIR ?= /usr/local/bin

# How many processes share the tests: most of a test is waiting.
WORKERS ?= 3

CHECKED := $(wildcard shiftfs overlay tests bench docs/demo.py)

.PHONY: demo test check bench install clean

# -P: what is shown and tested is the installed package, not the sources in the directory that make stands in.
demo:
	@.ci/packages $(DEMO_PACKAGES)
	@.ci/venv $(VENV) test
	@PYTHONPATH=tests $(PYTHON) -P docs/demo.py

test: check
	@.ci/packages $(TEST_PACKAGES)
	$(PYTHON) -P -m pytest --numprocesses=$(WORKERS) --dist=loadscope --no-loadscope-reorder $(PYTEST_ARGS)

check:
	@.ci/packages $(BUILD_PACKAGES)
	@.ci/venv $(VENV) test
	$(PYTHON) -m ruff check --quiet $(CHECKED)
	$(PYTHON) -m mypy --strict --no-error-summary $(CHECKED)

# A module of this checkout, with the installed package, which may have compiled parts.
installed = $(PYTHON) -P -c 'import runpy, sys; sys.path.append("."); runpy.run_module("$(1)", None, "__main__", True)'

# Beside other filesystems; `make bench BENCH_ARGS=--quick` takes minutes. Containers, and what others wait while a mount
# is busy, are commands of their own.
bench:
	@.ci/packages $(BENCH_PACKAGES)
	@.ci/venv $(VENV) test
	$(call installed,bench) $(BENCH_ARGS)
	$(call installed,bench.latency)
	$(call installed,bench.containers)

install:
	@.ci/packages $(BUILD_PACKAGES)
	@.ci/venv $(PREFIX)
	install -d $(BINDIR)
	ln -sf $(PREFIX)/bin/shiftfs $(PREFIX)/bin/shiftfsctl $(BINDIR)/
	$(BINDIR)/shiftfsctl install-helpers

clean:
	rm -rf $(VENV) $(VENV).lock .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find $(CHECKED) -name __pycache__ -type d -prune -exec rm -rf {} +
