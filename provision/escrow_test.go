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
// is away. The escrow does not know it, which is no reason to quarantine.
func TestPartialIsNoQuarantine(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b, _, away, _, _ := newEscrowBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		before, job := c.Fuses(), sampleJob(t, name, "release")
		ctx, cancel := context.WithCancel(t.Context())
		b.at["protect-key"] = cancel
		wantVerdict(t, b.run(ctx, c, job), provision.Aborted, provision.CauseCancelled, "")
		*away = true
		r := b.again(c, job)
		wantVerdict(t, r, provision.Error, provision.CauseKeystore, "could not be asked")
		if r.ExitCode() != provision.ExitKeystore {
			t.Errorf("exit code %d", r.ExitCode())
		}
		*away = false
		time.Sleep(time.Minute)
		r = b.again(c, job)
		wantPass(t, r)
		if err := b.invariants(c, job, before, r); err != nil {
			t.Error(err)
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
