package silicon

import (
	"strings"
	"testing"

	"github.com/provisiond/provisiond/esp/chip"
)

// What a client looks a reset up by must be what the ROM of every revision prints.
func TestBannersAreTheModels(t *testing.T) {
	for _, m := range chip.All() {
		s, err := Of(m.Name)
		if err != nil {
			t.Fatal(err)
		}
		for rev := chip.Revision(0); rev < 400; rev++ {
			if b := s.ROM(rev).Banner; !strings.HasPrefix(b, string(m.ROM.Banner)) {
				t.Errorf("%s %s prints %q, the model expects %q", m.Name, rev, b, m.ROM.Banner)
				break
			}
		}
	}
}
