package people

import (
	"slices"
	"strings"
	"testing"
)

// The table once more, as a reader of the documentation has it: o, e and a may.
const matrix = `
view            o e a
view-recipes    - e a
view-audit      - e a
export-audit    - e a
start           o e -
abort           o e -
scan-serial     o e -
open-lot        o e -
close-lot       o e -
scrap           o e -
reprint         o e -
rework          - e -
release-unit    - e -
clear-slot      - e -
reload-config   - e -
`

func TestAuthorize(t *testing.T) {
	t.Parallel()
	var named []Action
	for line := range strings.Lines(strings.TrimSpace(matrix)) {
		f := strings.Fields(line)
		a := Action(f[0])
		named = append(named, a)
		for i, r := range Roles() {
			if want := f[1+i] != "-"; Authorize(r, a) != want {
				t.Errorf("%s %s: %v, want %v", r, a, !want, want)
			}
		}
	}
	slices.Sort(named)
	if !slices.Equal(named, Actions()) {
		t.Errorf("this test knows   %v\nthe package knows %v", named, Actions())
	}
}

func TestAuthorizeDeniesByDefault(t *testing.T) {
	t.Parallel()
	for _, r := range append(Roles(), "", "root", "Engineer", "engineer ") {
		for _, a := range append(Actions(), "", "burn", "View", "*") {
			known := slices.Contains(Roles(), r) && slices.Contains(Actions(), a)
			if Authorize(r, a) && !known {
				t.Errorf("%q may %q", r, a)
			}
		}
	}
}

// An auditor changes nothing.
func TestAuditorOnlyReads(t *testing.T) {
	t.Parallel()
	for _, a := range Actions() {
		reads := strings.HasPrefix(string(a), "view") || a == ExportAudit
		if Authorize(Auditor, a) != reads {
			t.Errorf("auditor, %s: %v", a, !reads)
		}
	}
}
