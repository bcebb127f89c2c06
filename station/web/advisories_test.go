package web

import (
	"bytes"
	"strings"
	"testing"
)

// What is known of a board's silicon stands on its page, in every language; nothing
// does while nobody has read the chip.
func TestAdvisoriesOnPages(t *testing.T) {
	langs, err := loadLangs()
	if err != nil {
		t.Fatal(err)
	}
	all, err := loadPages(langs)
	if err != nil {
		t.Fatal(err)
	}
	for tag, set := range all {
		var out bytes.Buffer
		if err := set.ExecuteTemplate(&out, "advisories", advisories("esp32h2", "v0.1")); err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"AES-11401", "min_chip_revision", "SECURE_BOOT_V2_ECDSA_INSECURE"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: no %s in %s", tag, want, out.String())
			}
		}
		if strings.Contains(out.String(), "{0}") || strings.Contains(out.String(), ">advisories<") {
			t.Errorf("%s: %s", tag, out.String())
		}
		out.Reset()
		if err := set.ExecuteTemplate(&out, "advisories", advisories("esp32h2", "v1.2")); err != nil || strings.Contains(out.String(), "AES-11401") {
			t.Errorf("%s: %v, %s", tag, err, out.String())
		}
	}
	for _, c := range [][2]string{{"", ""}, {"esp32c3", ""}, {"", "v0.4"}, {"esp99", "v0.4"}} {
		if got := advisories(c[0], c[1]); got != nil {
			t.Errorf("%v: %v", c, got)
		}
	}
}
