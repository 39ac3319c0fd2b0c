# make run    set up, then the main job on demo data
# make test   set up, then every test
# make bench  set up, then every benchmark (release build)
.PHONY: bench-restore bench-claimed-restores criu kernels bench-gate bench-rates bench-weekly bench-yield bench-store bench-mount bench-fetch bench-arena bench-staging bench-staging-gain setup moto run reports test test-room test-all test-aws soak lint release bench bench-scale bench-solvers bench-forecast bench-simulation bench-claims clean

DEMO := target/demo
# Folder with public traces; what needs them is skipped, and says so, without it.
DATA ?= $(PILOTLIGHT_DATA)
CARGO_TEST := $(shell cargo nextest --version >/dev/null 2>&1 && echo "nextest run" || echo test)

setup:
	@scripts/setup

run: setup
	@echo "Building (the solver takes about 4 minutes the first time)"
	cargo build --workspace
	target/debug/pilotlight demo $(DEMO)
	target/debug/pilotlight plan $(DEMO)/plan.toml --what-if 'quota:alpha H100=+16' --what-if 'hit-rate:chat-70b=0.999'
	rm -rf $(DEMO)/simulated
	target/debug/pilotlight simulate $(DEMO)/demo.toml --out $(DEMO)/simulated
	scripts/run-server target/debug/pilotlight $(DEMO)/server

# What the planner spends when nothing happens, when demand doubles in five minutes, and when a cloud goes away.
reports: release
	target/release/pilotlight demo $(DEMO)
	for s in quiet doubling zone-loss; do target/release/pilotlight simulate $(DEMO)/$$s.toml --out $(DEMO)/$$s || exit 1; done

FEATURES ?=
# Without the examples, which are benchmarks: lint looks at them.
TESTS := --workspace --lib --bins --tests

test: setup
	cargo $(CARGO_TEST) $(TESTS) $(if $(FEATURES),--features $(FEATURES))

# The tests of one room alone, after a change there: ROOM=fleet.
test-room:
	cargo $(CARGO_TEST) -p $(ROOM) --lib --bins --tests

# Every test there is, in one build: those on the API of Amazon EC2 too, whose SDK takes minutes.
test-all: moto
	-@scripts/setup-criu
	$(MAKE) test FEATURES=$(AWS_FEATURES)

# Ten minutes of claims on two servers over one PostgreSQL, one of which is killed every five seconds; then outages of the
# database up to two minutes, a disk full for a minute, twenty frozen replicas and twenty without power, a thousand edits,
# a day of the whole server in virtual time. 40 minutes. Before that, for ten minutes, bits of stored objects flip and puts,
# removals and collections are killed.
soak: setup
	cargo build --workspace --bins
	FLIPS=10000 KILLS=500 cargo $(CARGO_TEST) -p snapshot-agent $(if $(findstring nextest,$(CARGO_TEST)),--profile soak -E 'test(every_flipped_bit) or test(killed_at_any_moment)' --no-capture,-- --nocapture --test-threads 1)
	SOAK_S=600 OUTAGES_S="1 6 25 120" ROUNDS=5 FULL_S=60 FREEZES=20 POWER_CUTS=20 EDITS=1000 DAY_H=24 DAYS_APART=1 KILLS=100 cargo $(CARGO_TEST) $(TESTS) $(if $(findstring nextest,$(CARGO_TEST)),--profile soak -E 'package(e2e) and (test(killed_replicas) or test(outages::) or test(shared::) or test(power::) or test(staging::)) or test(same_day_twice)' --no-capture,-- --nocapture --test-threads 1)

AWS_FEATURES := cli/aws,e2e/aws

# The servers that stand for clouds in tests: moto for Amazon's, Azurite for Azure's blobs.
moto: setup
	@scripts/setup-moto
	@scripts/setup-azurite
	target/moto/bin/python -m openapi_spec_validator docs/openapi.json

# CRIU, for tests of captured processes; without it they say that they are skipped.
criu: setup
	@scripts/setup-criu

# The provider for Amazon EC2 and a whole server on it, against moto. The SDK compiles for four minutes the first time.
test-aws: moto
	cargo $(CARGO_TEST) $(TESTS) --features $(AWS_FEATURES) $(if $(findstring nextest,$(CARGO_TEST)),-E 'test(aws::)',aws::)

lint: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings

release: setup
	cargo build --release --workspace --features cli/aws --lib --bins --examples

bench: bench-scale bench-solvers bench-forecast bench-claims bench-simulation bench-store bench-mount bench-fetch bench-arena bench-staging bench-staging-gain

# Catalogue scale: 5,000 offers, 40 classes, 20 and 50 demand paths, 16 periods.
bench-scale: release
	target/release/examples/catalogue --instances 30
	target/release/examples/catalogue --scenarios 50 --instances 10

# One period of 1,500 offers against GLOP on the written MPS of the same problem.
bench-solvers: release
	benchmarks/solvers

# Forecasts against seasonal-naive on every demand source that is there.
bench-forecast: release
	benchmarks/forecast "$(DATA)"

# Overheads of every scenario over public traces, and the speed of the engine with and without the planner.
bench-simulation: release
	target/release/examples/speed simulations/scenarios/servegen-pool.toml
	target/release/examples/events
	for s in simulations/scenarios/*.toml; do target/release/pilotlight simulate $$s --out target/simulated/$$(basename $$s .toml) || exit 1; done

# Claims a second and their latency on SQLite and PostgreSQL, a plan's inputs, start-up, memory.
bench-claims: release
	benchmarks/claims

# Objects written and read on one core, beside hashing the same bytes.
bench-store: release
	target/release/examples/ingest

# A tree mounted by each way beside the same tree on the local filesystem; with MODULE also a Python process that imports it from
# TREE, cold and warm, beside a copy, squashfs and a plain EROFS image. Needs root; TREE is a folder of packages.
TREE ?= /usr/lib/python3/dist-packages
bench-mount: release
	target/release/examples/mount target/release/pilotlight-agent $(TREE) $(MODULE)

# An object out of a local S3 server beside a plain parallel download of the same bytes.
bench-fetch: moto release
	target/release/examples/fetch target/moto/bin/moto_server

# From the disk into memory, verified, beside fio on the same files: needs fio, and GIB of disk and of memory.
bench-arena: release
	target/release/examples/arena $(or $(FOLDER),target) $(or $(GIB),2)

# Seconds to readiness by who chooses the copies on hosts, and dollars of buffer by how long a start takes; needs public traces.
SCENARIO ?= simulations/scenarios/servegen-pool.toml
bench-staging-gain: release
	PILOTLIGHT_DATA=$(DATA) target/release/examples/staging_gain $(SCENARIO)

# The staging plan of 2,000 hosts and 500 snapshots, beside a linear bound.
bench-staging: release
	target/release/examples/staging

# The boot gate on this host's GPUs: twice, against plain copies, 10,000 products, planted faults; the daemon's idle cost.
bench-gate: release
	benchmarks/gate target/release

# A PyTorch process captured and brought back, beside its cold start: needs a GPU, root, CRIU and python3 with torch.
bench-restore: release criu
	PILOTLIGHT_CRIU=$${PILOTLIGHT_CRIU:-$(CURDIR)/target/criu/criu} benchmarks/restore target/release $(or $(GIB),8) $(or $(ROUNDS),5)

# Claims over the API that this host brings up: control plane, agent, GPU, all real. Needs what bench-restore needs, and huge pages.
bench-claimed-restores: release criu
	PILOTLIGHT_CRIU=$${PILOTLIGHT_CRIU:-$(CURDIR)/target/criu/criu} benchmarks/claimed-restores target/release $(or $(GIB),4) $(or $(CLAIMS),100)

# A year of weekly diagnostics over 2,000 nodes, with the recorded faults of 400 servers where they are.
bench-weekly: release
	target/release/examples/weekly $(if $(DATA),$(DATA)/infinitehbd_faults/fault_trace.json)

bench-rates: release
	target/release/examples/rates

# Needs a GPU.
bench-yield: release
	target/release/examples/yield target/release/pilotlight-agent 20

kernels:
	scripts/build-kernels

clean:
	cargo clean
