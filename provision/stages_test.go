package provision

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/provision/recipe"
)

// Every stage burns, so every stage is declared one-way; nothing else is.
func TestEveryStageIsOneWay(t *testing.T) {
	stage := map[string]bool{}
	for _, name := range chip.Names() {
		for _, p := range []recipe.Profile{recipe.Development, recipe.Hybrid, recipe.Release, recipe.Closed} {
			r := testRecipe(t, name, p, "")
			all, err := stages(r.Model(), r)
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

// testRecipe is a recipe of a chip, with more lines if the test has some.
func testRecipe(t *testing.T, chipName string, p recipe.Profile, more string) *recipe.Recipe {
	t.Helper()
	text := fmt.Sprintf("recipe: sample\nrevision: 1\nchip: %s\nflash_size: 4MB\nprofile: %s\nimages: [{offset: 0, file: a}]\nboot_check: {expect: \"hello app\"}\n%s", chipName, p, more)
	r, err := recipe.Parse("r.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
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
