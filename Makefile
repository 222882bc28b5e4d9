# The commands of snapfs; `make help` lists them. Everything they need beside Rust and root they install
# themselves, aloud (tests/lab/install-missing).

PREFIX  ?= /usr
DESTDIR ?=
CARGO   ?= cargo

bindir  = $(DESTDIR)$(PREFIX)/bin
# mount(8) looks for its helpers in /sbin, which is /usr/sbin: nowhere else, whatever PREFIX is.
sbindir = $(DESTDIR)/usr/sbin
unitdir = $(DESTDIR)/usr/lib/systemd/system
mandir  = $(DESTDIR)$(PREFIX)/share/man

target  = $(or $(CARGO_TARGET_DIR),target)
release = $(target)/release
units   = $(wildcard systemd/*.service systemd/*.socket systemd/*.mount systemd/*.target systemd/*.timer)
pages   = $(wildcard docs/man/*.[1-8])

# cargo runs a test binary through the program named by this variable.
runner  = CARGO_TARGET_$(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')_RUNNER

.PHONY: all build lab lab-check test demo bench install uninstall clean help need-rust need-root
.NOTPARALLEL:

all: build

## build       the release binaries
build: need-rust
	$(CARGO) build --release --locked

## lab         make the Debian 13 root with the real engines (about a minute, then cached)
lab: need-root
	tests/lab/build

## lab-check   prove that every engine in the lab works on this machine
lab-check: lab
	tests/lab/enter tests/lab/selfcheck

## test        format, lints, unit tests, and the integration tests in the lab
test: need-rust need-root
	@$(CARGO) fmt --version >/dev/null 2>&1 && $(CARGO) clippy --version >/dev/null 2>&1 || \
		{ echo "rustfmt or clippy is missing: run 'rustup component add rustfmt clippy'" >&2; exit 1; }
	@tests/stage 'format' $(CARGO) fmt --check
	@tests/stage 'lints' $(CARGO) clippy --all-targets --locked -- -D warnings
	@tests/stage 'build of the tests' $(CARGO) test --no-run --locked
	@tests/stage 'unit tests' $(CARGO) test --lib --bins --locked
	@tests/stage 'lab' tests/lab/build
	@# The last stage says by itself how long it took: its summary closes the run.
	@printf '\n==> integration tests, in the lab\n'
	@PROPTEST_CASES=$${PROPTEST_CASES-200} SNAPFS_TEST_REQUIRE=root,fuse,lab $(runner)="$(CURDIR)/tests/lab/enter" \
		$(CARGO) test --test integration --locked

## demo        a session with snapfs in the lab, with its real output
demo: need-root build lab
	@tests/lab/enter tests/lab/demo

## bench       what a snapshot costs, beside podman, docker and containerd; into docs/performance.md (about 20 minutes)
bench: need-root build lab
	@tests/lab/enter tests/lab/bench --write docs/performance.md

## install     DESTDIR= PREFIX=/usr; what `make build` made
install:
	@[ -x $(release)/snapfs ] && [ -x $(release)/mount-snapfs ] || \
		{ echo "$(release)/snapfs or mount-snapfs is missing: run 'make build' first" >&2; exit 1; }
	@# Cargo allows no dot in the name of a binary, mount(8) asks for one.
	install -D -m 755 $(release)/snapfs $(bindir)/snapfs
	install -D -m 755 $(release)/mount-snapfs $(sbindir)/mount.snapfs
	ln -sf mount.snapfs $(sbindir)/mount.fuse.snapfs
	@# The units name the program by its whole path, as systemd wants it.
	$(foreach unit,$(units),install -D -m 644 $(unit) $(unitdir)/$(notdir $(unit)) && \
		sed -i 's,=/usr/bin/snapfs,=$(PREFIX)/bin/snapfs,' $(unitdir)/$(notdir $(unit)) &&) :
	$(foreach page,$(pages),install -D -m 644 $(page) $(mandir)/man$(subst .,,$(suffix $(page)))/$(notdir $(page)) &&) :

## uninstall   DESTDIR= PREFIX=/usr; images and store stay
uninstall:
	rm -f $(bindir)/snapfs $(sbindir)/mount.snapfs $(sbindir)/mount.fuse.snapfs
	rm -f $(foreach unit,$(units),$(unitdir)/$(notdir $(unit)))
	rm -f $(foreach page,$(pages),$(mandir)/man$(subst .,,$(suffix $(page)))/$(notdir $(page)))

## clean       remove what was built, and the cached labs
clean:
	$(CARGO) clean
	tests/lab/build --clean

## help        this list
help:
	@sed -n 's/^## //p' Makefile

need-rust:
	@command -v $(CARGO) >/dev/null 2>&1 && command -v rustc >/dev/null 2>&1 || \
		{ echo "Rust is missing (no $(CARGO) in PATH): install it from https://rustup.rs; under sudo, use: sudo env PATH=\"\$$PATH\" make" >&2; exit 1; }
	@tests/lab/install-missing cc:gcc /usr/include/stdlib.h:libc6-dev

need-root:
	@[ "$$(id -u)" = 0 ] || \
		{ echo "this needs root (mounts, containers): run it as root, or: sudo env PATH=\"\$$PATH\" make" >&2; exit 1; }
