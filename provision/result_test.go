package provision_test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// volatile is what differs from run to run: keys, what follows from them, and time.
var volatile = []struct{ re, by string }{
	{`("key_ref": )"[^"]+"`, `$1"REF"`},
	{`("key_fingerprint": )"[0-9a-f]{64}"`, `$1"FINGERPRINT"`},
	{`("ciphertext_sha256": )"[0-9a-f]{64}"`, `$1"CIPHERTEXT"`},
	{`("(elapsed_)?ms": )\d+`, `${1}0`},
	{`"fp:[0-9a-f]{64}"`, `"fp:FINGERPRINT"`},
}

// TestResultJSON holds the JSON of a release run of each chip against testdata. Set
// PROVISION_UPDATE=1 to write it anew, and read the difference.
func TestResultJSON(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		r := b.run(t.Context(), c, sampleJob(t, name, "release"))
		wantPass(t, r)
		got, err := json.MarshalIndent(r, "", "  ")
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range volatile {
			got = regexp.MustCompile(v.re).ReplaceAll(got, []byte(v.by))
		}
		got = append(got, '\n')
		path := filepath.Join("testdata", "result-"+name+".json")
		if os.Getenv("PROVISION_UPDATE") != "" {
			if err := os.WriteFile(path, got, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(string(want), string(got)); d != "" {
			t.Errorf("%s differs (-want +got):\n%s", path, d)
		}

		// The masked members have values.
		if r.KeyRef == "" || len(r.KeyFingerprint) != 64 || r.ElapsedMS <= 0 || r.BytesWritten <= 0 || r.PlanSHA256 == (provision.Hash{}) {
			t.Errorf("%+v", r)
		}
		var sum int64
		for _, s := range r.Steps {
			sum += s.MS
		}
		// The resets between steps make up the rest.
		if sum > r.ElapsedMS || sum < r.ElapsedMS/2 {
			t.Errorf("the steps took %d ms, the run %d ms", sum, r.ElapsedMS)
		}
	})
}

// members of the object of every unit (issue 2, item 11).
var members = []string{
	"unit", "simulated", "chip", "revision", "verdict", "reason", "next_step", "key_ref", "key_fingerprint", "plan_sha256",
	"efuse_before", "efuse_after", "images", "steps", "bytes_written", "elapsed_ms",
}

// TestResultMembers: every result has every member, whatever its verdict, and no
// list is null, which scripts trip over.
func TestResultMembers(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		job := sampleJob(t, name, "release")
		results := map[string]*provision.Result{}
		b := newMemoryBench(t)
		results["pass"] = b.run(t.Context(), b.board(espsim.Options{Model: model(t, name)}), job)
		results["refused"] = b.run(t.Context(), b.board(espsim.Options{Model: model(t, name), MAC: chip.MAC{2, 0, 0, 0, 0, 9}, FlashSize: 1 << 20}), job)
		b = newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		c.Unplug()
		results["unplugged"] = b.run(t.Context(), c, job)
		for what, r := range results {
			raw, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			var m map[string]any
			if err := json.Unmarshal(raw, &m); err != nil {
				t.Fatal(err)
			}
			for _, k := range members {
				v, ok := m[k]
				if !ok || v == nil {
					t.Errorf("%s: %s is %v", what, k, v)
				}
			}
			// The member is always there, and null as long as nothing was closed.
			if v, ok := m["closing"]; !ok || (v != nil) != (what == "pass") {
				t.Errorf("%s: closing %v", what, v)
			}
		}
		if r := results["unplugged"]; r.Verdict != provision.Error || !strings.Contains(r.Reason, "unplugged") || r.Unit != "" || r.ExitCode() != 1 {
			t.Errorf("%s: %s", r.Verdict, r.Reason)
		}
	})
}

// TestProgress: events come in order, inside their bounds, and name the unit once
// it is known.
func TestProgress(t *testing.T) {
	for _, name := range twoChips {
		for _, profile := range profiles {
			inBubble(t, name+"/"+profile, func(t *testing.T) {
				b := newMemoryBench(t)
				c := b.board(espsim.Options{Model: model(t, name)})
				var steps []string
				var last provision.Event
				b.observe = func(e provision.Event) {
					switch {
					case e.Index < last.Index || e.Index > e.Count || e.Index < 1 || e.Done > e.Total && e.Total > 0 || e.Elapsed < last.Elapsed:
						t.Errorf("event %+v after %+v", e, last)
					case e.Index == last.Index && e.Step != last.Step:
						t.Errorf("step %s and %s have one number", last.Step, e.Step)
					case e.Index == last.Index && e.Total == last.Total && e.Done < last.Done:
						t.Errorf("progress went back from %d to %d", last.Done, e.Done)
					case e.Index > 2 && e.Unit != unitMAC:
						t.Errorf("event of unit %s", e.Unit)
					}
					if e.Index != last.Index {
						steps = append(steps, e.Step)
					}
					last = e
				}
				r := b.run(t.Context(), c, sampleJob(t, name, profile))
				wantPass(t, r)
				if last.Index != last.Count || len(steps) != last.Count || len(r.Steps) != last.Count {
					t.Errorf("%d steps, the last event is %d of %d", len(steps), last.Index, last.Count)
				}
				if names := func() (out []string) {
					for _, s := range r.Steps {
						out = append(out, s.Name)
					}
					return out
				}(); !slices.Equal(names, steps) {
					t.Errorf("events %v, result %v", steps, names)
				}
			})
		}
	}
}

// TestManyUnits: one engine's job and one store serve several units at once; each
// has its own key.
func TestManyUnits(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		b := newBench(t)
		job := sampleJob(t, name, "release")
		type one struct {
			c *espsim.Chip
			r *provision.Result
		}
		done := make(chan one)
		const units = 6
		for i := range units {
			go func() {
				c := newBoard(t, espsim.Options{Model: model(t, name), MAC: chip.MAC{2, 0, 0, 0, 1, byte(i)}})
				done <- one{c, b.run(t.Context(), c, job)}
			}()
		}
		keys := map[string]bool{}
		for range units {
			o := <-done
			wantPass(t, o.r)
			keys[fmt.Sprint(o.c.Fuses()[keyIndex(name)])] = true
			if key := b.storedKey(o.c.MAC()); !slices.Equal(o.c.Fuses()[keyIndex(name)], words(reversed(key))) {
				t.Error("the unit has another unit's key")
			}
		}
		if len(keys) != units {
			t.Errorf("%d different keys for %d units", len(keys), units)
		}
		if j, ok := b.jrn.(*journal.Journal); !ok {
			t.Error("no journal")
		} else if _, err := j.Verify(t.Context(), nil); err != nil {
			t.Error(err)
		}
	})
}
