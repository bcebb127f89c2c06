package main

import (
	"context"
	"errors"
	"iter"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/provision/journal"
	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/config"
)

// gone is an anchor that is away until it is told otherwise.
type gone struct {
	journal.Anchor
	back bool
}

func (g *gone) Checkpoints(ctx context.Context) iter.Seq2[journal.Checkpoint, error] {
	if g.back {
		return g.Anchor.Checkpoints(ctx)
	}
	return func(yield func(journal.Checkpoint, error) bool) { yield(journal.Checkpoint{}, journal.ErrAnchorAway) }
}

// TestJournalAnchorCondition: a warning while the journal was not compared, and no
// unit when it is found to be another one; nothing where there is no anchor.
func TestJournalAnchorCondition(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, c := range map[string]struct {
		other, ready bool
	}{"the anchored one": {false, true}, "another one": {true, false}} {
		t.Run(name, func(t *testing.T) {
			folder, err := journal.NewDirAnchor(t.TempDir(), "hall")
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, strings.ReplaceAll(name, " ", "-"))
			if err := journal.Init(path, journal.Options{Station: "hall", Anchor: folder}); err != nil {
				t.Fatal(err)
			}
			if c.other {
				path += "-new"
				if err := journal.Init(path, journal.Options{Station: "hall"}); err != nil {
					t.Fatal(err)
				}
			}
			anchor := &gone{Anchor: folder}
			j, err := journal.Open(path, journal.WithAnchor(anchor), journal.WithAnchorLater(), journal.WithInterval(time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = j.Close() }()
			conds := &station.Conditions{}
			d := &daemon{cfg: &config.File{Journal: config.Journal{Anchor: "vault"}}, jrn: j}
			only := func() station.Condition {
				t.Helper()
				d.watchAnchor(conds)
				all := conds.All()
				if len(all) != 1 || all[0].Name != "journal-anchor" {
					t.Fatalf("%+v", all)
				}
				return all[0]
			}
			if got := only(); got.OK || !got.Ready || !strings.Contains(got.Text, "was not compared with its anchor yet") || got.Next == "" {
				t.Errorf("away: %+v", got)
			}
			anchor.back = true
			if _, err := j.Checkpoint(t.Context()); errors.Is(err, journal.ErrAnchor) != c.other {
				t.Error(err)
			}
			if got := only(); got.OK != c.ready || got.Ready != c.ready || c.other && !strings.Contains(got.Text, "not the one that is anchored") {
				t.Errorf("back: %+v", got)
			}
		})
	}
	conds := &station.Conditions{}
	path := filepath.Join(dir, "plain")
	if err := journal.Init(path, journal.Options{Station: "hall"}); err != nil {
		t.Fatal(err)
	}
	j, err := journal.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = j.Close() }()
	(&daemon{cfg: &config.File{}, jrn: j}).watchAnchor(conds)
	if all := conds.All(); len(all) != 0 {
		t.Errorf("without an anchor: %+v", all)
	}
}
