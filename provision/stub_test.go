package provision_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/rom"
	"github.com/provisiond/provisiond/internal/espsim"
	"github.com/provisiond/provisiond/internal/sample"
)

// A stub that does not start, as on a simulated chip, which runs no code, costs a
// warning: the unit is made with the ROM's loader.
func TestStubIsNeverNeeded(t *testing.T) {
	bothChips(t, func(t *testing.T, name string) {
		dir := t.TempDir()
		stub := rom.Stub{Entry: 0x40380000, TextStart: 0x40380000, Text: make([]byte, 100)}
		if err := os.WriteFile(filepath.Join(dir, name+".json"), stub.Encode(), 0o600); err != nil {
			t.Fatal(err)
		}
		path, err := sample.Write(dir, sample.Product{Chip: model(t, name), Name: "stubbed", Profile: "hybrid", AppSize: 6 << 10, Baud: 921600, More: "stub: .\n"})
		if err != nil {
			t.Fatal(err)
		}
		b := newMemoryBench(t)
		c := b.board(espsim.Options{Model: model(t, name)})
		r := b.run(t.Context(), c, load(t, path))
		wantPass(t, r)
		if !slices.ContainsFunc(r.Warnings, func(w string) bool { return strings.Contains(w, "without the flasher stub") }) {
			t.Errorf("warnings %q", r.Warnings)
		}
		if r.Baud != 921600 {
			t.Errorf("written at %d baud", r.Baud)
		}
	})
}
