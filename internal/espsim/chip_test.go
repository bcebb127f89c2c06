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
