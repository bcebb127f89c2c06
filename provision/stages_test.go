package provision

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/efuse"
	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/secureboot"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/provision/layout"
	"github.com/provisiond/provisiond/provision/recipe"
)

// Every stage burns, so every stage is declared one-way; nothing else is.
func TestEveryStageIsOneWay(t *testing.T) {
	stage := map[string]bool{}
	for _, name := range chip.Names() {
		for _, p := range []recipe.Profile{recipe.Development, recipe.Hybrid, recipe.Release, recipe.Closed} {
			r := testRecipe(t, name, p, "")
			all, err := stagesOf(t, r)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range all {
				stage[s.Name] = true
				if !isOneWay(s.Name) {
					t.Errorf("%s %s: stage %s is not declared one-way", name, p, s.Name)
				}
			}
		}
	}
	for step, n := range steps {
		if n == oneWay && !stage[step] {
			t.Errorf("step %s is declared one-way, and no stage has its name", step)
		}
		if n != oneWay && n != reversible {
			t.Errorf("step %s is neither", step)
		}
	}
}

// The order of esp-facts E.4 and F.5: keys are hidden before RD_DIS is locked, digests
// locked before Secure Boot is on, Secure Boot on before the counter, the last fuse last.
func TestStageOrder(t *testing.T) {
	want := []string{
		stageKey, stageProtect, stageDigests, stageLockDigests, stageLockdown, stageSecureBoot, stageEnable, stageWRDis, stageClose,
	}
	for _, m := range chip.All() {
		for _, p := range []recipe.Profile{recipe.Development, recipe.Hybrid, recipe.Release, recipe.Closed} {
			all, err := stagesOf(t, testRecipe(t, m.Name, p, ""))
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			hidden, locked := -1, -1
			for i, s := range all {
				names = append(names, s.Name)
				if len(s.ReadProtect) > 0 {
					hidden = i
				}
				if slices.Contains(s.WriteProtect, "RD_DIS") {
					locked = i
				}
				if len(s.Keys) > 0 && len(s.WriteProtect)+len(s.ReadProtect) > 0 {
					t.Errorf("%s %s: %s protects what it burns, before that was read back", m.Name, p, s.Name)
				}
			}
			at := 0
			for _, n := range names {
				i := slices.Index(want[at:], n)
				if i < 0 {
					t.Fatalf("%s %s: %v", m.Name, p, names)
				}
				at += i + 1
			}
			if hidden < 0 || locked < 0 || hidden > locked || slices.Index(names, stageEnable) < locked {
				t.Errorf("%s %s: %v", m.Name, p, names)
			}
		}
	}
}

// stagesOf lists the stages of a recipe's job on the newest silicon.
func stagesOf(t *testing.T, r *recipe.Recipe) ([]efuse.Stage, error) {
	t.Helper()
	return (&Job{Recipe: r, Layout: &layout.Layout{}}).usualStages()
}

// testKey is one of the vendor's test keys.
func testKey(t *testing.T, scheme chip.SignatureScheme) (path string, key secureboot.PublicKey) {
	t.Helper()
	path, err := filepath.Abs("../esp/secureboot/testdata/" + string(scheme) + ".pub.pem")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if key, err = secureboot.ParsePublicKey(b); err != nil {
		t.Fatal(err)
	}
	return path, key
}

// testRecipe is a recipe of a chip with Secure Boot, and more lines if the test has
// some.
func testRecipe(t *testing.T, chipName string, p recipe.Profile, more string) *recipe.Recipe {
	t.Helper()
	m, err := chip.ByName(chipName)
	if err != nil {
		t.Fatal(err)
	}
	scheme := m.SecureBoot.Schemes[0].Scheme
	path, key := testKey(t, scheme)
	text := fmt.Sprintf("recipe: sample\nrevision: 1\nchip: %s\nflash_size: 4MB\nprofile: %s\nimages: [{offset: 0, file: a}]\nboot_check: {expect: \"hello app\"}\n"+
		"secure_boot: {scheme: %s, keys: [%s], accept_weak_ecdsa: %t}\n%s", chipName, p, scheme, path, m.SecureBoot.WeakECDSA && scheme.ECDSA(), more)
	if p == recipe.Release && m.Lockdown.ReleaseTrap != "" {
		text += "accept_sdm_errata: true\n"
	}
	r, err := recipe.Parse("r.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	r.SecureBootKeys = []secureboot.PublicKey{key}
	return r
}

type countingJournal struct {
	noJournal
	entries []journal.Entry
}

func (j *countingJournal) Append(_ context.Context, e journal.Entry) (journal.Entry, error) {
	j.entries = append(j.entries, e)
	return e, nil
}

// The engine does what a step declares: an undeclared one is not begun, a cancel
// reaches the reversible ones only.
func TestStepsDoAsDeclared(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	for step := range steps {
		j := &countingJournal{}
		u := &unit{Engine: &Engine{Journal: j}, res: &Result{}}
		var inside error
		err := u.do(ctx, step, map[string]any{}, func(act context.Context) (observed, error) {
			_, limited := act.Deadline()
			if limited != isOneWay(step) {
				t.Errorf("step %s: own deadline %t", step, limited)
			}
			inside = act.Err()
			return nil, nil
		})
		if err != nil || inside != nil || len(j.entries) != 2 {
			t.Errorf("step %s: %v, %v, %d entries", step, err, inside, len(j.entries))
		}
		if says := strings.Contains(string(j.entries[0].Payload), `"one_way":true`); says != isOneWay(step) {
			t.Errorf("the intent of %s is %s", step, j.entries[0].Payload)
		}
	}
	// A cancel in the middle of an act.
	for _, step := range []string{stepFlash, stageEnable} {
		ctx, cancel := context.WithCancel(t.Context())
		u := &unit{Engine: &Engine{Journal: &countingJournal{}}, res: &Result{}}
		if err := u.do(ctx, step, map[string]any{}, func(act context.Context) (observed, error) {
			cancel()
			if cut := act.Err() != nil; cut == isOneWay(step) {
				t.Errorf("step %s is cut by a cancel: %t", step, cut)
			}
			return nil, nil
		}); err != nil {
			t.Errorf("step %s: %v", step, err)
		}
	}
	cancel()
	j := &countingJournal{}
	u := &unit{Engine: &Engine{Journal: j}, res: &Result{}}
	acted := false
	act := func(context.Context) (observed, error) { acted = true; return nil, nil }
	if err := u.do(t.Context(), "unheard-of", map[string]any{}, act); err == nil || acted || len(j.entries) != 0 {
		t.Errorf("an undeclared step: %v, done %t, %d entries", err, acted, len(j.entries))
	}
	if err := u.do(ctx, stageEnable, map[string]any{}, act); err == nil || acted || len(j.entries) != 0 {
		t.Errorf("a one-way step after a cancel: %v, done %t, %d entries", err, acted, len(j.entries))
	}
}
