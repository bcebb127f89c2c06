package journal

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/provisiond/provisiond/internal/boltfile"
)

// Prober checks a journal's file before Open maps it, best in another process:
// what bbolt panics about, or a memory fault, then ends that process. A damage is
// a *DamagedError; nil means that Open may go on.
type Prober func(ctx context.Context, path string) error

// Probe checks what Open checks and changes nothing.
func Probe(ctx context.Context, path string) error {
	j, err := open(path, opening{ctx: ctx, look: true, files: []boltfile.Option{boltfile.NoWait()}})
	if err != nil {
		return err
	}
	return j.closeFiles()
}

// Peek describes a journal after the same checks, and changes nothing.
func Peek(ctx context.Context, path string) (Info, error) {
	j, err := open(path, opening{ctx: ctx, look: true})
	if err != nil {
		return Info{}, err
	}
	return j.Info(), j.closeFiles()
}

// ProbeAnswer runs Probe as the child of ProbeWith's: it writes the damage, if
// there is one, to out. Whatever else Probe says is left to the parent's Open.
func ProbeAnswer(ctx context.Context, path string, out io.Writer) error {
	var damaged *DamagedError
	if err := Probe(ctx, path); !errors.As(err, &damaged) {
		return json.NewEncoder(out).Encode(probeAnswer{Good: true})
	}
	return json.NewEncoder(out).Encode(probeAnswer{Index: damaged.Index, Reason: damaged.Reason})
}

type probeAnswer struct {
	Good   bool   `json:"good"`
	Index  int64  `json:"index"`
	Reason string `json:"reason"`
}

// ProbeWith gives a Prober that runs a command which calls ProbeAnswer. A child
// that ends in another way than with an answer has met a damage.
func ProbeWith(command func(ctx context.Context, path string) *exec.Cmd) Prober {
	return func(ctx context.Context, path string) error {
		cmd := command(ctx, path)
		var out, errOut bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errOut
		err := cmd.Run()
		if ctx.Err() != nil {
			return fmt.Errorf("journal %s: check stopped: %w", path, ctx.Err())
		}
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) { // it was never started
			return fmt.Errorf("journal %s: the check of the database could not be started: %w", path, err)
		}
		var answer probeAnswer
		switch jerr := json.Unmarshal(out.Bytes(), &answer); {
		case err == nil && jerr == nil && answer.Good:
			return nil
		case err == nil && jerr == nil:
			return &DamagedError{Path: path, Index: answer.Index, Reason: answer.Reason}
		case err == nil:
			err = errors.New("no answer")
		}
		first, _, _ := bytes.Cut(errOut.Bytes(), []byte("\n"))
		return &DamagedError{Path: path, Index: NoIndex, Reason: fmt.Sprintf("the process that looked at it ended with: %v: %.200s", err, first)}
	}
}

// probe asks the prober, if there is one and something to look at.
func (o opening) probe(path string) error {
	if o.prober == nil {
		return nil
	}
	if _, err := os.Stat(path); err != nil { //nolint:gosec // the journal that the caller names
		return nil //nolint:nilerr // Open says it better
	}
	return o.prober(o.ctx, path)
}
