package recipe

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/esp/rom"
)

// FlasherStub is a program that takes the place of the ROM's loader while flash is
// written, where the silicon runs it. It has no part in what a unit becomes.
type FlasherStub struct {
	Path   string
	SHA256 [sha256.Size]byte // of the file
	Stub   rom.Stub
}

// maxStubFile is more than any stub's file has.
const maxStubFile = 1 << 20

// FlasherStub gives the stub for silicon of a revision; false for a recipe without one.
func (r *Recipe) FlasherStub(rev chip.Revision) (FlasherStub, bool) {
	s, ok := r.stubs[r.model.StubFile(rev)]
	return s, ok
}

// loadStubs reads the stubs for the silicon that the recipe allows.
func (r *Recipe) loadStubs() error {
	if r.Stub == "" {
		return nil
	}
	oldest, newest := r.RevisionLimits()
	r.stubs = map[string]FlasherStub{}
	for _, name := range []string{r.model.StubFile(oldest), r.model.StubFile(newest)} {
		path := filepath.Join(r.resolve(r.Stub), name)
		b, err := readLimited(osOpener{}, path, maxStubFile)
		s := FlasherStub{Path: path, SHA256: sha256.Sum256(b)}
		if err == nil {
			s.Stub, err = rom.ParseStub(b)
		}
		if err != nil {
			return Errors{r.FieldError("stub", fmt.Sprintf("%s: %v", path, err),
				"give the directory with esptool's stubs as JSON files, or remove the field: no stub is needed")}
		}
		r.stubs[name] = s
	}
	return nil
}
