package provision_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/escrow"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// outage is a keystore that is away while somebody says so.
type outage struct {
	*reservingStore
	away *bool
}

func (o outage) err(op string) error {
	if *o.away {
		return fmt.Errorf("%w: %s: Vault is sealed", keystore.ErrUnavailable, op)
	}
	return nil
}

// newEscrowBench is a bench whose keystore may go away and has an escrow.
func newEscrowBench(t *testing.T) (b *bench, inner *reservingStore, away *bool, spool string, id *age.X25519Identity) {
	t.Helper()
	b, inner = newReservingBench(t)
	away, spool = new(bool), t.TempDir()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	o := outage{inner, away}
	broken := &faultyStore{Store: inner, fail: func(op string, _ int) (error, error) { return o.err(op), nil }}
	s, err := escrow.Open(t.Context(), escrow.Config{Dir: spool, Recipients: []string{id.Recipient().String()}},
		func(context.Context) (keystore.Store, error) { return broken, nil })
	if err != nil {
		t.Fatal(err)
	}
	b.store = s
	return b, inner, away, spool, id
}

// TestEscrow: the keystore goes away, and the line does not stop: the unit passes
// on a sealed key, which shows in result and journal, and which the custodian
// brings to the keystore.
func TestEscrow(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b, inner, away, spool, id := newEscrowBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		before, job := c.Fuses(), sampleJob(t, name, "release")
		*away = true
		r := b.run(t.Context(), c, job)
		wantPass(t, r)
		if !strings.HasPrefix(r.KeyRef, escrow.RefPrefix) || len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "escrow drain") {
			t.Errorf("ref %s, warnings %q", r.KeyRef, r.Warnings)
		}
		seen := map[string]bool{}
		for _, e := range b.entries() {
			var p struct {
				KeyRef  string `json:"key_ref"`
				Warning string `json:"warning"`
			}
			if err := json.Unmarshal(e.Payload, &p); err != nil {
				t.Fatal(err)
			}
			if e.Kind == journal.KindObserved && p.Warning != "" {
				seen[e.Step] = true
			}
		}
		if !seen["plan"] || !seen["custody"] {
			t.Errorf("the journal shows the escrow in %v", seen)
		}
		if len(inner.rows) != 0 {
			t.Error("the keystore was away and has a record")
		}

		*away = false
		src, err := escrow.Spool(spool)
		if err != nil {
			t.Fatal(err)
		}
		rep, err := escrow.Drain(t.Context(), src, []age.Identity{id}, inner, time.Now)
		if err != nil || rep.Stored != 1 || len(rep.Findings) != 0 {
			t.Fatalf("%+v, %v", rep, err)
		}
		b.store = inner
		if err := b.invariants(c, job, before, r); err != nil {
			t.Error(err)
		}
		wantVerdict(t, b.again(c, job), provision.Fail, provision.CauseRefused, "")
	})
}

// TestEscrowGoesOn: a unit that was begun on a sealed key goes on with it,
// whatever the keystore does meanwhile.
func TestEscrowGoesOn(t *testing.T) {
	for _, step := range []string{"burn-key", "protect-key", "burn-lockdown"} {
		for _, back := range []bool{false, true} {
			inBubble(t, fmt.Sprintf("%s/back=%v", step, back), func(t *testing.T) {
				b, inner, away, spool, id := newEscrowBench(t)
				c := b.board(espsim.Options{Model: model(t, "esp32c3")})
				before, job := c.Fuses(), sampleJob(t, "esp32c3", "hybrid")
				*away = true
				ctx, cancel := context.WithCancel(t.Context())
				b.at[step] = cancel
				wantVerdict(t, b.run(ctx, c, job), provision.Aborted, provision.CauseCancelled, "")
				*away = !back
				time.Sleep(time.Minute) // of the bubble: the keystore is asked again
				r := b.again(c, job)
				wantPass(t, r)
				if len(r.Warnings) == 0 {
					t.Error("no warning")
				}
				*away = false
				src, err := escrow.Spool(spool)
				if err != nil {
					t.Fatal(err)
				}
				if rep, err := escrow.Drain(t.Context(), src, []age.Identity{id}, inner, time.Now); err != nil || rep.Stored != 1 || len(rep.Findings) != 0 {
					t.Fatalf("%+v, %v", rep, err)
				}
				b.store = inner
				if err := b.invariants(c, job, before, r); err != nil {
					t.Error(err)
				}
				if alive, _ := b.keysAlive(); alive != 1 {
					t.Errorf("%d keys are alive", alive)
				}
			})
		}
	}
}

// TestPartialIsNoQuarantine: the key of a half-made unit is in the keystore that
// is away. The escrow does not know it, which is no reason to quarantine. If the
// chip shows the key, the unit is finished; else it waits.
func TestPartialIsNoQuarantine(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		for _, shown := range []bool{true, false} {
			b, inner, away, _, _ := newEscrowBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			before, job := c.Fuses(), sampleJob(t, name, "release")
			if shown {
				ctx, cancel := context.WithCancel(t.Context())
				b.at["protect-key"] = cancel
				wantVerdict(t, b.run(ctx, c, job), provision.Aborted, provision.CauseCancelled, "")
			} else {
				whole := b.store
				b.store = &faultyStore{Store: inner, fail: func(op string, _ int) (error, error) {
					if op == "state" { // the burn is begun, and the keystore goes away
						return nil, fmt.Errorf("%w: cut", keystore.ErrUnknownOutcome)
					}
					return nil, nil
				}}
				wantVerdict(t, b.run(t.Context(), c, job), provision.Error, provision.CauseKeystore, "cut")
				b.store = whole
			}
			*away = true
			r := b.again(c, job)
			if shown {
				wantPass(t, r)
				if len(r.Warnings) == 0 || !strings.Contains(r.Warnings[0], "was not asked") || r.KeyRef == "" || r.KeyFingerprint == "" {
					t.Errorf("key %s at %q, warnings %q", r.KeyFingerprint, r.KeyRef, r.Warnings)
				}
			} else {
				wantVerdict(t, r, provision.Error, provision.CauseKeystore, "could not be asked")
				if r.ExitCode() != provision.ExitKeystore || c.Burns() != 0 {
					t.Errorf("exit code %d, %d burns", r.ExitCode(), c.Burns())
				}
			}
			*away = false
			time.Sleep(time.Minute)
			if !shown {
				r = b.again(c, job)
				wantPass(t, r)
			}
			if err := b.invariants(c, job, before, r); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestRestartInOutage: the process is gone, and the keystore too. What is burned is
// finished from journal and chip, and the keystore is told later; what is not burned
// waits.
func TestRestartInOutage(t *testing.T) {
	for _, name := range twoChips {
		for _, step := range []string{"verify-flash", "custody", "burn-key", "protect-key", "burn-lockdown", "enable-encryption", "write-protect"} {
			inBubble(t, name+"/"+step, func(t *testing.T) {
				b, away := newOutageBench(t)
				fail, told := b.store.(*faultyStore).fail, 0
				b.store.(*faultyStore).fail = func(op string, n int) (error, error) {
					if op == "state" {
						told++
						*away = told == 2 || *away // after the state that allows the burn
					}
					return fail(op, n)
				}
				c := b.board(espsim.Options{Model: model(t, name)})
				before, job := c.Fuses(), sampleJob(t, name, "release")
				ctx, cancel := context.WithCancel(t.Context())
				b.at[step] = cancel
				wantVerdict(t, b.run(ctx, c, job), provision.Aborted, provision.CauseCancelled, "")
				b.store.(*faultyStore).fail = fail
				*away = true
				burns := c.Burns()
				r := b.again(c, job)
				if burns == 0 {
					wantVerdict(t, r, provision.Error, provision.CauseKeystore, "Vault is sealed")
					if c.Burns() != 0 || !r.KeystoreAway {
						t.Errorf("%d burns, away %v", c.Burns(), r.KeystoreAway)
					}
					*away = false
					wantPass(t, b.again(c, job))
					return
				}
				wantPass(t, r)
				if len(r.Warnings) != 2 || !strings.Contains(r.Warnings[0], "was not asked") {
					t.Errorf("warnings %q", r.Warnings)
				}
				*away = false
				b.wantState(keystore.MayBeInSilicon)
				b.wantSettled(1)
				b.wantState(keystore.InSilicon)
				if err := b.invariants(c, job, before, r); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// TestRestartInOutageWithAnotherKey: the chip does not show the key whose custody the
// journal tells of. Without the keystore nobody goes on.
func TestRestartInOutageWithAnotherKey(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b, away := newOutageBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		job := sampleJob(t, name, "release")
		ctx, cancel := context.WithCancel(t.Context())
		b.at["burn-key"] = cancel // its end is waited for
		wantVerdict(t, b.run(ctx, c, job), provision.Aborted, provision.CauseCancelled, "")
		if err := c.SetFuse(keyIndex(name), 2, 0xFFFFFFFF); err != nil {
			t.Fatal(err)
		}
		*away = true
		burns := c.Burns()
		r := b.again(c, job)
		wantVerdict(t, r, provision.Error, provision.CauseKeystore, "Vault is sealed")
		if c.Burns() != burns {
			t.Error("something was burned")
		}
	})
}

// TestOutageWithoutEscrow: units before custody end unburned, units after it
// finish.
func TestOutageWithoutEscrow(t *testing.T) {
	for _, step := range []string{"plan", "reserve", "custody", "protect-key", "burn-lockdown", "enable-encryption", "write-protect", "close", "proof"} {
		inBubble(t, step, func(t *testing.T) {
			b, s := newReservingBench(t)
			away := false
			o := outage{s, &away}
			b.store = &faultyStore{Store: s, fail: func(op string, _ int) (error, error) { return o.err(op), nil }}
			c := b.board(espsim.Options{Model: model(t, "esp32c3")})
			b.at[step] = func() { away = true }
			r := b.run(t.Context(), c, sampleJob(t, "esp32c3", "release"))
			if step == "plan" || step == "reserve" || step == "custody" {
				wantVerdict(t, r, provision.Error, provision.CauseKeystore, "Vault is sealed")
				if r.ExitCode() != provision.ExitKeystore || c.Burns() != 0 {
					t.Errorf("exit code %d, %d burns", r.ExitCode(), c.Burns())
				}
				return
			}
			wantPass(t, r)
		})
	}
}
