package provision_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/keystore/keystoretest"
	"github.com/provisiond/provisiond/provision"
)

// wantAlive: the store has so many keys of the unit, and none of them was given up.
func (b *bench) wantAlive(n int) {
	b.t.Helper()
	if alive, gone := b.keysAlive(); alive != n || gone != 0 {
		b.t.Errorf("%d keys, and %d were given up", alive, gone)
	}
}

// TestMovedBoard: a board whose key was burned on a sealed record, of which the
// keystore knows no more than a claim. Wherever it goes then, with the same job, its
// key is never given up.
func TestMovedBoard(t *testing.T) {
	for _, place := range []string{"another station", "the same station, whose journal is gone"} {
		bothChips(t, func(t *testing.T, name string) {
			b, inner, away, _, _ := newEscrowBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			job := sampleJob(t, name, "release")
			*away = true
			ctx, cancel := context.WithCancel(t.Context())
			b.at["protect-key"] = cancel
			wantVerdict(t, b.run(ctx, c, job), provision.Aborted, provision.CauseCancelled, "")
			metas, err := b.store.List(t.Context(), unitMAC)
			if len(metas) != 1 || !metas[0].MayBeInSilicon() {
				t.Fatalf("%+v, %v", metas, err)
			}
			claim := metas[0]
			claim.States = nil // as a claim reads, or a record whose drain was cut off
			if err := inner.Reserve(t.Context(), claim); err != nil {
				t.Fatal(err)
			}
			other := newMemoryBench(t)
			other.store = inner
			want := "key blocks are in use"
			if place == "another station" {
				other.station, want = "line2", `of station "bench"`
			}
			burns := c.Burns()
			r := other.again(c, job)
			wantVerdict(t, r, provision.Fail, provision.CauseRefused, want)
			if c.Burns() != burns {
				t.Error("something was burned")
			}
			other.wantAlive(1)
		})
	}
}

// TestOtherStationsKey: another station's key of the same job is not given up, also
// if the board in hand shows no key.
func TestOtherStationsKey(t *testing.T) {
	for _, states := range [][]keystore.StateKind{{}, {keystore.MayBeInSilicon}, {keystore.MayBeInSilicon, keystore.NotInSilicon}} {
		inBubble(t, fmt.Sprint(states), func(t *testing.T) {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, "esp32c3")})
			job := sampleJob(t, "esp32c3", "release")
			r := keystoretest.NewRecord(t, unitMAC)
			r.Job, r.Station = job.ID(unitMAC), "line2"
			if _, err := b.store.Create(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			for _, k := range states {
				if _, err := b.store.AddState(t.Context(), unitMAC, r.Fingerprint, keystore.State{Kind: k, Job: r.Job, Station: r.Station}); err != nil {
					t.Fatal(err)
				}
			}
			res := b.wantRefused(c, job, `of station "line2"`)
			if !strings.Contains(res.NextStep, `station "line2"`) {
				t.Errorf("next step %q", res.NextStep)
			}
			b.wantAlive(1)
		})
	}
}

// TestKeyBlockBeforeKeystore: a key that is stored and not burned is given up only if
// the chip's key blocks are free.
func TestKeyBlockBeforeKeystore(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		for _, spoil := range []string{"a bit in the block", "read-protected"} {
			b := newMemoryBench(t)
			c := b.board(espsim.Options{Model: model(t, name)})
			job := sampleJob(t, name, "release")
			r := keystoretest.NewRecord(t, unitMAC)
			r.Job, r.Station = job.ID(unitMAC), "bench"
			if _, err := b.store.Create(t.Context(), r); err != nil {
				t.Fatal(err)
			}
			if spoil == "read-protected" {
				setField(t, c, fieldNamed(t, c, "RD_DIS"), 1)
			} else if err := c.SetFuse(keyIndex(name), 3, 1<<17); err != nil {
				t.Fatal(err)
			}
			b.wantRefused(c, job, "")
			b.wantAlive(1)
		}
	})
}
