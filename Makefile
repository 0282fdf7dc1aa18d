LINT := go tool -modfile=$(CURDIR)/tools/go.mod golangci-lint

# Each test binary starts servers of its own: more than two at a time only slow each other down.
TEST := go test -count=1 -p=2

# How many inputs each fuzz target tries, some seconds' worth. By number and with a bounded minimizing, since Go's fuzzer reports
# its own deadline as a failure when a worker is busy at that moment (golang/go#48591).
FUZZ := 10000x

# How many storms over the relay: about five minutes' worth.
STORMS := 200

# Rooms of the root whose tests begin first, so that none of them runs alone at the end.
LONGEST := ./outbox ./inbox ./broker ./heal

# The root and what has needs of its own. Each is tried, whatever came of the one before.
MODULES := . idempotency/redisstore chaos bench
each = @status=0; for module in $(1); do echo "$$module: $(2)"; (cd $$module && $(2)) || status=1; done; exit $$status

.PHONY: help demo bench test test-system test-docker test-browser race relay-storm chaos soak mutants fuzz lint fmt docs env

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## show it: orders, lost replies, kills, and who was charged how often. DEMO="-orders 2000 -kills 10 -exit"; DEMO=-help lists the rest
	go run ./cmd/demo $(DEMO)

bench: ## measure it beside its peers and its limits, 20 minutes of a quiet machine. BENCH="-quick -rows 1,3 -json FILE"; BENCH=-help lists the rest
	@.ci/install
	@cd bench && go build -buildvcs=false -o ../bin/bench . && cd .. && bin/bench $(BENCH)

test: ## run the tests of every room on real servers, installing the binaries of Postgres and Redis where they are missing
	.ci/install
	$(call each,$(filter-out chaos,$(MODULES)),$(TEST) $$(test $$module != . || echo $(LONGEST)) ./...)

test-system: ## run the tests of the whole: the real services, killed, cut off, restored, upgraded; and of what is shipped with them
	.ci/install
	cd chaos && $(TEST) ./...

test-docker: ## run docker compose's containers under load, kill, pause and cut off each of them, and judge; needs a Docker Engine, which builds the images first
	cd chaos && ONCEBOX_DOCKER=1 $(TEST) -v -timeout=1h -run '^TestContainersThat|^TestContainersOf' .

test-browser: ## look at the demo's page with a real Chromium. SCREENSHOTS=folder keeps the pictures
	.ci/install chromium
	cd cmd/demo/browser && $(TEST) ./...

race: ## both under the race detector
	.ci/install
	$(call each,$(MODULES),$(TEST) -race ./...)

relay-storm: ## kills, outages and lost ends around the relay, by 200 seeds, in six minutes. STORMS=2000 for longer; make test runs a few
	@.ci/install
	ONCEBOX_STORMS=$(STORMS) go test -count=1 -timeout=2h -v -run '^TestNothingIsLostOrReorderedInAStorm$$' ./outbox

chaos: ## a storm over everything: kills, outages, disks that are lost, and a judge; 10 minutes. CHAOS="-seed 7 -kills 20 -orders 2000"; CHAOS=-help lists the rest
	@.ci/install
	@cd chaos && go build -buildvcs=false -o ../bin/storm ./storm && ../bin/storm $(CHAOS)

soak: ## run the tests of the relay, the broker, the inbox, the keys and the page at real times and sizes, for an hour or so
	.ci/install
	ONCEBOX_SOAK=1 go test -count=1 -timeout=4h -v ./outbox
	ONCEBOX_SOAK=1 go test -count=1 -timeout=2h -v ./broker ./inbox ./idempotency
	cd idempotency/redisstore && ONCEBOX_SOAK=1 go test -count=1 -timeout=1h -v .
	cd chaos && ONCEBOX_SOAK=1 go test -count=1 -timeout=1h -v -run '^(TestARedisThatForgetsMakesNoSecondOrder|TestVerifyComparesAllOrdersAndThenWhatIsNew|TestABrokerThatLostItsDiskWithEventsInFlightIsFilledAgain|TestABrokerThatIsRolledBackIsFilledAgain|TestAClusterWhoseServersAreKilledOneAtATimeChargesEachOrderOnce)$$' .
	.ci/install chromium
	cd cmd/demo/browser && ONCEBOX_SOAK=1 go test -count=1 -v -run '^TestAThousandLiveRowsAreSmooth$$' .
	go test -run '^$$' -bench Charge -benchtime 20000x -count 3 ./billing
	go test -run '^$$' -bench Known -benchtime 40000x ./billing
	go test -run '^$$' -bench Poison -benchtime 20000x -timeout=1h ./billing

mutants: ## break one guard after the other and show which test catches it, for half an hour or so. MUTANTS="-only healing-off" for one, MUTANTS=-storm for those that relay-storm has to see
	cd chaos && go run ./mutants $(MUTANTS)

fuzz: ## look for keys and bodies that are misread, some seconds each. FUZZ=100000000x for longer
	go test ./idempotency -run '^$$' -fuzz '^FuzzParseKey$$' -fuzztime $(FUZZ) -fuzzminimizetime 20x
	go test ./idempotency -run '^$$' -fuzz '^FuzzFingerprint$$' -fuzztime $(FUZZ) -fuzzminimizetime 20x
	go test ./internal/service -run '^$$' -fuzz '^FuzzCheckJSON$$' -fuzztime $(FUZZ) -fuzzminimizetime 20x

lint: ## check style, mistakes, and who imports whom
	$(call each,$(MODULES) cmd/demo/browser,$(LINT) run ./...)

fmt: ## format all Go files
	$(call each,$(MODULES) cmd/demo/browser,$(LINT) fmt ./...)

docs: ## run every command of README.md and docs/ as it is written, in a fresh clone
	.ci/docs

env: ## write new random passwords, an admin token and an API key for docker compose into secrets/, and .env, which says where they are
	@if [ -e secrets ]; then echo 'env: secrets/ is there, and holds the passwords that the volumes know. To begin anew: docker compose down -v && rm -r secrets' >&2; exit 1; fi
	@umask 077 && mkdir secrets && umask 022 && cd secrets && \
		for name in postgres orders-owner orders-app orders-relay billing-owner billing-app billing-relay nats-orders nats-billing nats-demo nats-cluster demo redis admin-token api-key; do \
		od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$$name"; done && \
		printf 'NATS_%s_PASSWORD: "%s"\n' ORDERS "$$(cat nats-orders)" BILLING "$$(cat nats-billing)" DEMO "$$(cat nats-demo)" >nats-passwords && \
		routes=$$(for name in nats nats-2 nats-3; do printf '"nats://cluster:%s@%s:6222", ' "$$(cat nats-cluster)" "$$name"; done) && \
		printf 'authorization { user: cluster, password: "%s" }\nroutes: [%s]\n' "$$(cat nats-cluster)" "$$routes" >nats-cluster-routes && \
		hash=$$({ sha256sum 2>/dev/null || shasum -a 256; } <api-key) && printf 'default:me:%s\n' "$${hash%% *}" >api-keys
	@grep -qs '^ONCEBOX_SECRETS=' .env || echo 'ONCEBOX_SECRETS=./secrets' >>.env
	@echo 'Wrote secrets/. Next: docker compose up --build --wait'
