# Every command that sets up, runs, checks or installs dubd is written here, and only here.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo run bench test lint types ci browser reliability service-test format screenshots translations light full \
        ray clean install install-environment install-files restart-if-active uninstall
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory

# --- Python --------------------------------------------------------------------------------------------------

SUITABLE := import sys; sys.exit(sys.version_info < (3, 11))
# The first of these that is recent enough; `make PYTHON=/path/to/python …` names another.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	if $$name -c '$(SUITABLE)' 2>/dev/null; then command -v $$name; break; fi; done)
# The service can't see home folders, where a person's own Pythons are.
SERVICE_PYTHON ?= $(shell for name in /usr/bin/python3 /usr/local/bin/python3 $(PYTHON); do \
	if $$name -c '$(SUITABLE)' 2>/dev/null; then echo $$name; break; fi; done)

VENV := .venv
IN_VENV := $(VENV)/bin/python
# No warnings: packages of requirements/full.txt are there on purpose without what they ask for and dubd never uses.
PIP_OPTIONS := --quiet --quiet --disable-pip-version-check --no-input --no-warn-conflicts
# Python compiles what is used when it is first used; to compile all of it here takes more than a minute. And it keeps that,
# whatever the environment says: the tests start some hundred daemons, and compiling them each time was a third of it all.
export PYTHONDONTWRITEBYTECODE :=
PIP = $(IN_VENV) -m pip install $(PIP_OPTIONS) --no-compile

# An environment is up to date when it holds the stamp of its Python and of the locks as they are now.
LIGHT_LOCKS := requirements/light.txt requirements/dev.txt
FULL_LOCKS := requirements/torch.txt requirements/full.txt
digest = $(shell { $(IN_VENV) -V 2>/dev/null || $(PYTHON) -V; cat $(1); } 2>/dev/null | sha256sum | cut -c 1-12)
LIGHT_STAMP := $(VENV)/.light-$(call digest,$(LIGHT_LOCKS) pyproject.toml)
FULL_STAMP := $(VENV)/.full-$(call digest,$(LIGHT_LOCKS) $(FULL_LOCKS))
RAY_STAMP := $(VENV)/.ray-$(call digest,$(LIGHT_LOCKS) requirements/ray.txt)

# Shell lines that stop with advice when there is no Python to make an environment with: $(call need_python,PYTHON)
define need_python
if [ -z "$(1)" ]; then \
	echo "dubd needs Python 3.11 or newer. On Debian or Ubuntu: sudo apt install python3 python3-venv"; \
	echo "(on Ubuntu 22.04: python3.11 python3.11-venv), or: make PYTHON=/path/to/python3.12 ..."; exit 1; fi; \
if ! $(1) -c 'import ensurepip, venv' 2>/dev/null; then \
	echo "$(1) can't make environments. On Debian or Ubuntu: sudo apt install python3-venv"; \
	echo "(or python3.12-venv and the like, to go with $(1))"; exit 1; fi
endef

# --- For people ----------------------------------------------------------------------------------------------

help: ## show this
	@echo "dubd clones voices in bulk. To see it work:  make demo"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

demo: light ## speak the sample job with the draft engine, in a folder of its own
	@$(VENV)/bin/dubd demo $(ARGS)

run: light ## the daemon in the foreground, with ./config.toml
	@$(VENV)/bin/dubd run $(ARGS)

# The daemon needs no model to be measured; the rest does, and torch.
bench: $(if $(filter-out daemon,$(firstword $(ARGS))),full,light) ## measure the daemon, or: ARGS="decode", codec, load, job
	@$(VENV)/bin/dubd bench $(or $(ARGS),daemon)

# --- Checks --------------------------------------------------------------------------------------------------

# Two processes: one test waits for a worker while another works. A file's tests share what they set up; files go in their
# order, in which the long ones come early, so that neither process is left alone with them at the end.
TEST_PROCESSES ?= 2

test: full ray ## every test, the fish engine's and the cluster's too (ARGS="-k inbox" for some)
	@$(IN_VENV) -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: light ## ruff: mistakes and format
	@$(VENV)/bin/ruff check --quiet .
	@$(VENV)/bin/ruff format --quiet --check . || { echo "make format mends that"; exit 1; }
	@echo "lint: clean"

types: full ## mypy, strict
	@$(VENV)/bin/mypy

ci: lint types test ## all of them

# Tests of the pages are skipped, with this reason, where there is no browser.
browser: ## Debian's Chromium, which the tests of the pages and the screenshots need; as root
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then exit 0; fi; \
	export DEBIAN_FRONTEND=noninteractive; apt="apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20"; \
	{ timeout 60 $$apt update && \
	timeout 240 $$apt install -y --no-install-recommends chromium chromium-driver; } >/dev/null 2>&1 || \
	{ echo "Chromium could not be installed; as root: apt-get install chromium chromium-driver"; exit 1; }

reliability: light ray ## attack every promise of docs/reliability.md, to a table (ARGS="--only wire", ARGS=--short)
	@$(IN_VENV) -m tests.reliability $(ARGS)

# The machine is cached in ~/.cache/dubd-service-test; see tests/service.
service-test: light ## install, attack and upgrade the service in a container with a systemd of its own; as root (ARGS=BASE to upgrade from)
	@if ! command -v debootstrap >/dev/null || ! command -v systemd-nspawn >/dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; apt="apt-get -qq -o Acquire::Retries=1 -o Acquire::http::Timeout=20"; \
		{ timeout 60 $$apt update && \
		timeout 240 $$apt install -y --no-install-recommends debootstrap systemd-container; } >/dev/null 2>&1 || \
		{ echo "The container's tools could not be installed; as root: apt-get install debootstrap systemd-container"; \
		exit 1; }; fi
	@$(IN_VENV) -m tests.service $(ARGS)

format: light ## put the code in order
	@$(VENV)/bin/ruff check --quiet --fix --exit-zero .
	@$(VENV)/bin/ruff format .

screenshots: light ## make the pictures of the pages in docs/ again; needs make browser
	@$(IN_VENV) -m tests.report.screenshots docs/pictures

translations: light ## after the Chinese pages have been mended: they are of the English text as it is now
	@$(IN_VENV) -m tests.docs.test_translations

clean: ## take away the environment and the caches (never ./var)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	find daemon workers tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- The environment of the checkout -------------------------------------------------------------------------

light: $(LIGHT_STAMP) ## the environment, with the draft engine

full: $(FULL_STAMP) ## the environment, with torch and fish-speech too

ray: $(RAY_STAMP) ## the environment, with Ray for a pool on a cluster too

# Also made anew when its Python has gone.
$(IN_VENV):
	@$(call need_python,$(PYTHON))
	@echo "making $(VENV) with $$($(PYTHON) -V) ..."
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); exit 1; }

$(LIGHT_STAMP): | $(IN_VENV)
	@echo "installing the daemon and the draft engine into $(VENV) ..."
	@rm -f $(VENV)/.light-*
	@$(PIP) -r requirements/light.txt -r requirements/dev.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(FULL_STAMP): $(LIGHT_STAMP)
	@echo "installing torch and fish-speech into $(VENV); the first time this takes minutes ..."
	@rm -f $(VENV)/.full-*
	@$(PIP) --constraint requirements/light.txt -r requirements/torch.txt
	@$(PIP) --no-deps -r requirements/full.txt
	@touch $@

$(RAY_STAMP): $(LIGHT_STAMP)
	@echo "installing Ray into $(VENV) ..."
	@rm -f $(VENV)/.ray-*
	@$(PIP) --constraint requirements/light.txt -r requirements/ray.txt
	@touch $@

# --- The service ---------------------------------------------------------------------------------------------

# A package build sets DESTDIR; PREFIX is the service's own folder and goes whole when it is uninstalled.
DESTDIR ?=
PREFIX ?= /opt/dubd
HOME_OF_DUBD := $(DESTDIR)$(PREFIX)
INSTALLED := $(HOME_OF_DUBD)/bin/python
# FISH=1: with torch and fish-speech; without, the draft engine, or a worker.python that has them.
FISH ?=
# RAY=1: with Ray, for pool.backend = "ray".
RAY ?=

# Whether there is a service manager to tell.
WITH_SYSTEMD := [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]

install: install-environment install-files restart-if-active ## install or upgrade the service, as root (FISH=1: with torch and fish-speech, RAY=1: with Ray)

# A service that runs drains and goes on with the new version; systemd waits until it is ready. That it was started often
# of late, as whoever sets it up does, must not keep it from starting.
restart-if-active:
	@if $(WITH_SYSTEMD); then \
		systemd-sysusers dubd.conf && systemd-tmpfiles --create dubd.conf && systemctl daemon-reload; fi
	@state=; if $(WITH_SYSTEMD); then state=$$(systemctl show --property ActiveState --value dubd); fi; \
	case "$$state" in active|activating|reloading) \
		echo "Installed. dubd runs: restarting it, once the segments that have begun have ended ..."; \
		systemctl reset-failed dubd; systemctl try-restart dubd || { \
			echo "The new version did not start. What is wrong, and what the configuration lacks, say:"; \
			echo "  journalctl -u dubd -n 20"; \
			echo "  sudo -u dubd dubd doctor --config /etc/dubd/config.toml"; exit 1; }; \
		echo "Restarted: dubd $$($(INSTALLED) -c 'import daemon; print(daemon.__version__)') goes on where it was.";; \
	*) \
		echo "Installed. Next: look through $(DESTDIR)/etc/dubd/config.toml, then"; \
		echo "  sudo -u dubd dubd doctor --config /etc/dubd/config.toml"; \
		echo "  sudo systemctl enable --now dubd"; \
		echo "  sudo usermod -aG dubd SOMEONE_WHO_DROPS_JOBS";; \
	esac

install-environment:
	@$(call need_python,$(SERVICE_PYTHON))
	@[ "$(notdir $(PREFIX))" = dubd ] || { echo "PREFIX is dubd's own folder; its name must be dubd"; exit 1; }
	@case "$$($(SERVICE_PYTHON) -c 'import sys; print(sys.base_prefix)')/" in /home/*|/root/*) \
		echo "The service can't see $(SERVICE_PYTHON), which is in a home folder."; \
		echo "Install Python for everyone (sudo apt install python3 python3-venv) or name one: SERVICE_PYTHON=..."; \
		exit 1;; esac
	@echo "installing into $(HOME_OF_DUBD) with $$($(SERVICE_PYTHON) -V) ..."
	@umask 022; set -e; \
	$(SERVICE_PYTHON) -m venv $(HOME_OF_DUBD); \
	pip="$(INSTALLED) -m pip install $(PIP_OPTIONS)"; \
	$$pip -r requirements/light.txt; \
	if [ -n "$(FISH)" ]; then \
		echo "installing torch and fish-speech; this takes minutes ..."; \
		$$pip --constraint requirements/light.txt -r requirements/torch.txt; \
		$$pip --no-deps -r requirements/full.txt; fi; \
	if [ -n "$(RAY)" ]; then \
		echo "installing Ray ..."; \
		$$pip --constraint requirements/light.txt -r requirements/ray.txt; fi; \
	copy=$$(mktemp -d); trap 'rm -rf "$$copy"' EXIT; \
	cp -r daemon workers pyproject.toml README.md LICENSE "$$copy"; \
	$$pip --no-deps --no-build-isolation --force-reinstall "$$copy"; \
	if [ -n "$(DESTDIR)" ]; then \
		grep -rlI "$(HOME_OF_DUBD)" $(HOME_OF_DUBD)/bin $(HOME_OF_DUBD)/pyvenv.cfg | \
			xargs -r sed -i "s|$(HOME_OF_DUBD)|$(PREFIX)|g"; fi

# The keys of a config.toml, given or switched off, one "table.key" a line.
CONFIG_KEYS = awk '/^\[/ {gsub(/[][ ]/, ""); table = $$0} /^\#?[a-z_0-9]+ *=/ {gsub(/^\#| *=.*/, ""); print table "." $$0}'
DOCS := $(HOME_OF_DUBD)/share/doc/dubd
CONFIG := $(DESTDIR)/etc/dubd/config.toml

# The config.toml of the version that was installed before tells which keys are new; one that had none kept beside its
# README is told by the keys of the person's own.
install-files:
	@if [ -e $(CONFIG) ]; then \
		before=$(CONFIG); if [ -e $(DOCS)/config.toml ]; then before=$(DOCS)/config.toml; fi; \
		echo "kept $(CONFIG) as it is"; \
		new=$$($(CONFIG_KEYS) config.toml | while read -r key; do \
			$(CONFIG_KEYS) $$before | grep -qxF "$$key" || echo "  $$key"; done); \
		if [ -n "$$new" ]; then echo "keys that it does not have yet, each with its default ($(DOCS)/config.toml):"; \
			echo "$$new"; fi; \
	else install -D -m 644 config.toml $(CONFIG) && \
		sed -i 's|^#root = .*|root = "/var/lib/dubd"|' $(CONFIG); fi
	@rm -rf $(DOCS)
	@install -d $(DOCS)/docs/pictures $(DOCS)/examples
	@install -m 644 README.md README.zh.md CHANGELOG.md LICENSE config.toml $(DOCS)
	@install -m 644 docs/*.md $(DOCS)/docs
	@install -m 644 docs/pictures/* $(DOCS)/docs/pictures
	@cp examples/* $(DOCS)/examples && chmod -R a+rX,go-w $(DOCS)
	@install -d $(DESTDIR)/usr/local/bin
	@ln -sfn $(PREFIX)/bin/dubd $(DESTDIR)/usr/local/bin/dubd
	@install -D -m 644 systemd/dubd.service $(DESTDIR)/etc/systemd/system/dubd.service
	@sed -i 's|/opt/dubd|$(PREFIX)|g' $(DESTDIR)/etc/systemd/system/dubd.service
	@if [ -n "$(RAY)" ]; then install -D -m 644 systemd/cluster.conf \
		$(DESTDIR)/etc/systemd/system/dubd.service.d/cluster.conf; fi
	@install -D -m 644 systemd/dubd.sysusers $(DESTDIR)/etc/sysusers.d/dubd.conf
	@install -D -m 644 systemd/dubd.tmpfiles $(DESTDIR)/etc/tmpfiles.d/dubd.conf

uninstall: ## take the service away; what it made and its config.toml stay
	@[ "$(notdir $(PREFIX))" = dubd ] || { echo "PREFIX is dubd's own folder; its name must be dubd"; exit 1; }
	@if $(WITH_SYSTEMD); then systemctl disable --now dubd 2>/dev/null || true; fi
	@rm -rf $(HOME_OF_DUBD)
	@rm -f $(DESTDIR)/etc/systemd/system/dubd.service.d/cluster.conf
	@rm -f $(DESTDIR)/usr/local/bin/dubd $(DESTDIR)/etc/systemd/system/dubd.service \
		$(DESTDIR)/etc/sysusers.d/dubd.conf $(DESTDIR)/etc/tmpfiles.d/dubd.conf
	@if $(WITH_SYSTEMD); then systemctl daemon-reload; fi
	@echo "Gone. Kept: $(DESTDIR)/etc/dubd, $(DESTDIR)/var/lib/dubd and the user dubd; remove them by hand if you like."
