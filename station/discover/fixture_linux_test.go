package discover

import (
	"fmt"
	"testing"

	"github.com/provisiond/provisiond/station/discover/discovertest"
)

// tree is a fixture's sysfs and /dev, with the roots to look there.
type tree struct {
	*discovertest.Tree
	roots Roots
}

func newTree(t testing.TB) *tree {
	t.Helper()
	x := discovertest.New(t)
	return &tree{x, Roots{Sys: x.Sys, Dev: x.Dev}}
}

func (x *tree) scan(t testing.TB) []Port {
	t.Helper()
	ports, err := Scan(x.roots)
	if err != nil {
		t.Fatal(err)
	}
	return ports
}

// where says device and by-path name of each port.
func where(ports []Port) (list []string) {
	for _, p := range ports {
		list = append(list, fmt.Sprintf("%s %s", p.Name, p.ByPath))
	}
	return list
}

const pc = discovertest.PC
