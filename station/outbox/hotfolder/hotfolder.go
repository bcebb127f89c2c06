// Package hotfolder puts one JSON file for each event into a folder that another
// program empties.
//
// What it promises (docs/factory.md):
//
//   - A file appears whole, under its final name, and durable: it is written under
//     a name that begins with a dot, synced, renamed, and the folder is synced.
//   - The name follows from the journal and the index, and sorts in their order: a
//     repeat replaces the same file with the same bytes. A file that was taken
//     away before the repeat comes again, with the same name and id.
//   - Nothing is ever deleted, but for a temporary file of our own.
package hotfolder

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/station/outbox"
)

// Config is one member of `hot_folders` of a station's configuration.
type Config struct {
	// Name names the cursor's file.
	Name string `yaml:"name"`
	// Dir is the folder. It must be there: a share that is not mounted is not
	// replaced by an empty folder.
	Dir string `yaml:"dir"`
	// Mode is of the files, in octal; 0640 if it is left out.
	Mode string `yaml:"mode,omitempty"`
	// Events selects types; unit.finished if it is left out.
	Events []string `yaml:"events,omitempty"`
	// From is "now" (what happens from the first start on) or "beginning".
	From outbox.From `yaml:"from,omitempty"`
}

// Validate checks what can be checked without a look at the folder.
func (c Config) Validate() error {
	if err := outbox.CheckName(c.Name); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("dir: %q is no absolute path", c.Dir)
	}
	if _, err := c.mode(); err != nil {
		return err
	}
	return outbox.CheckPatterns(c.Events)
}

func (c Config) mode() (os.FileMode, error) {
	if c.Mode == "" {
		return 0o640, nil
	}
	n, err := strconv.ParseUint(c.Mode, 8, 32)
	if err != nil || n&^0o666 != 0 || n&0o600 != 0o600 {
		return 0, fmt.Errorf("mode: %q is no mode of a file: write one such as \"0640\"", c.Mode)
	}
	return os.FileMode(n), nil
}

// Sink writes into one folder.
type Sink struct {
	c    Config
	mode os.FileMode
}

// New checks the configuration. A folder that is not there is a fault that may
// pass, as that of a server that is away.
func New(c Config) (*Sink, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if len(c.Events) == 0 {
		c.Events = []string{outbox.TypeFinished}
	}
	mode, err := c.mode()
	return &Sink{c, mode}, err
}

// Delivery is what the outbox needs to know.
func (s *Sink) Delivery() outbox.Delivery {
	return outbox.Delivery{Name: s.c.Name, Kind: "hot folder", Sink: s, Events: s.c.Events, From: s.c.From}
}

// Batch is the files of one sync of the folder.
func (s *Sink) Batch() int { return 32 }

// Close has nothing to do.
func (s *Sink) Close() error { return nil }

// FileName is the name of an event's file: the journal's first eight characters,
// the index with twelve digits, and the unit's MAC without colons or else the
// event's type.
func FileName(e *outbox.Event) string {
	what := e.Type
	if e.Type == outbox.TypeFinished && e.Unit != nil {
		what = strings.ReplaceAll(e.Unit.MAC, ":", "")
		if what == "" {
			what = "unknown"
		}
	}
	return fmt.Sprintf("%.8s-%012d-%s.json", e.Journal, e.Index, what)
}

// Deliver writes the events' files.
func (s *Sink) Deliver(ctx context.Context, events []*outbox.Event) (int, error) {
	done := 0
	var err error
	for _, e := range events {
		if err = ctx.Err(); err != nil {
			break
		}
		if err = outbox.ReplaceFile(filepath.Join(s.c.Dir, FileName(e)), append(e.Body[:len(e.Body):len(e.Body)], '\n'), s.mode); err != nil {
			break
		}
		done++
	}
	if done > 0 {
		if syncErr := outbox.SyncDir(s.c.Dir); syncErr != nil {
			return 0, errors.Join(err, syncErr)
		}
	}
	return done, err
}
