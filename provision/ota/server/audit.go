package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// Use is one line of the audit file: a key was used, or is about to be.
type Use struct {
	Time    time.Time            `json:"time"`
	ID      uint64               `json:"id"`    // the same for all lines of one request
	Event   string               `json:"event"` // load, begin, end
	Unit    chip.MAC             `json:"unit"`
	Key     keystore.Fingerprint `json:"key"`
	Who     string               `json:"who"`              // token, or cert and its serial number
	From    string               `json:"from"`             // the address that asked
	Why     string               `json:"why"`              // firmware, manifest
	Format  string               `json:"format,omitempty"` // plain or encimg, which use no flash key
	Release string               `json:"release,omitempty"`
	Slot    string               `json:"slot,omitempty"`
	Range   string               `json:"range,omitempty"` // as asked for
	Outcome string               `json:"outcome,omitempty"`
	Bytes   int64                `json:"bytes,omitempty"` // that were sent
}

// Audit is an append-only file of Uses, one JSON object per line. A line is in
// the kernel's hands when Write returns, so it outlives this process; it outlives
// the machine when it is synced: after every line with every = 0, and otherwise
// at most that much later.
type Audit struct {
	every time.Duration

	mu    sync.Mutex
	path  string
	f     *os.File
	dirty bool
	torn  bool  // the file may end in the middle of a line
	err   error // of a sync: no more lines are taken
	stop  chan struct{}
	done  chan struct{}
}

// OpenAudit opens or makes the file, mode 0600.
func OpenAudit(path string, every time.Duration) (*Audit, error) {
	a := &Audit{path: path, every: every, stop: make(chan struct{}), done: make(chan struct{})}
	if err := a.Reopen(); err != nil {
		return nil, err
	}
	go a.run()
	return a, nil
}

// Reopen opens the file by its name again, after a rotation.
func (a *Audit) Reopen() error {
	f, err := os.OpenFile(a.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("audit file: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	old := a.f
	a.f, a.err, a.torn = f, nil, endsTorn(f)
	if old == nil {
		return nil
	}
	return errors.Join(old.Sync(), old.Close())
}

// endsTorn reports whether a file ends without a newline: the disk was full, or the
// machine stopped.
func endsTorn(f *os.File) bool {
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Size() == 0 {
		return false
	}
	var last [1]byte
	_, err = f.ReadAt(last[:], st.Size()-1)
	return err == nil && last[0] != '\n'
}

func (a *Audit) run() {
	defer close(a.done)
	if a.every <= 0 {
		return
	}
	t := time.NewTicker(a.every)
	defer t.Stop()
	for {
		select {
		case <-t.C:
			a.sync()
		case <-a.stop:
			return
		}
	}
}

func (a *Audit) sync() {
	a.mu.Lock()
	f, dirty := a.f, a.dirty
	a.dirty = false
	a.mu.Unlock()
	if !dirty {
		return
	}
	if err := f.Sync(); err != nil {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.f == f { // it was not closed by a rotation
			a.err = err
		}
	}
}

// Write adds a line.
func (a *Audit) Write(u Use) error {
	b, err := json.Marshal(u)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err != nil {
		return fmt.Errorf("audit file: an earlier line did not reach the disk: %w", a.err)
	}
	b = append(b, '\n')
	if a.torn { // this line does not go on where a broken one stopped
		b = append([]byte{'\n'}, b...)
	}
	n, err := a.f.Write(b)
	if n > 0 {
		a.torn = n < len(b) && b[n-1] != '\n'
	}
	if err != nil {
		return fmt.Errorf("audit file: %w", err)
	}
	a.dirty = true
	if a.every <= 0 {
		if a.err = a.f.Sync(); a.err != nil {
			return fmt.Errorf("audit file: %w", a.err)
		}
	}
	return nil
}

// Close syncs and closes the file.
func (a *Audit) Close() error {
	close(a.stop)
	<-a.done
	a.mu.Lock()
	defer a.mu.Unlock()
	return errors.Join(a.f.Sync(), a.f.Close())
}
