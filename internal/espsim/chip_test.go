package espsim

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/provisiond/provisiond/esp/chip"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func model(t testing.TB, name string) chip.Model {
	t.Helper()
	m, err := chip.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func newChip(t testing.TB, o Options) *Chip {
	t.Helper()
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// A revision that the fuses cannot tell would become another one without a word.
func TestRevisionThatFusesCannotTell(t *testing.T) {
	for _, tc := range []struct {
		chip string
		rev  chip.Revision
		ok   bool
	}{
		{"esp32", 303, true},
		{"esp32", 304, false},
		{"esp32", 400, false},
		{"esp32c3", 315, true},
		{"esp32c3", 16, false},
		{"esp32c3", 909, false},
	} {
		c, err := New(Options{Model: model(t, tc.chip), Revision: tc.rev})
		if (err == nil) != tc.ok {
			t.Errorf("%s %v: %v", tc.chip, tc.rev, err)
		}
		if err == nil {
			_ = c.Close()
		}
	}
}
