package vault

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// names are what may stand in a path: mounts, stations, auth mounts.
var names = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$`)

// checkName: paths are joined by server and client, so ".." and "/" in a name
// would reach other endpoints.
func checkName(what, s string) error {
	if !names.MatchString(s) {
		return fmt.Errorf("keystore/vault: %s %q: write 1 to 64 letters, digits, - and _, beginning with a letter or digit", what, s)
	}
	return nil
}

func checkMount(s string) error {
	for part := range strings.SplitSeq(s, "/") {
		if err := checkName("mount", part); err != nil {
			return err
		}
	}
	return nil
}

func unitPath(unit chip.MAC) string { return fmt.Sprintf("units/%02x/%s", unit[5], unit) }

func claimPath(unit chip.MAC, n int) string {
	return unitPath(unit) + "/claim/" + strconv.Itoa(n)
}

func recordPath(unit chip.MAC, fp keystore.Fingerprint) string {
	return unitPath(unit) + "/" + fp.String()
}

func statePath(unit chip.MAC, fp keystore.Fingerprint, n int) string {
	return recordPath(unit, fp) + "/state/" + strconv.Itoa(n)
}

func checkpointFolder(station string) string { return "checkpoints/" + station }

const storePath = "store"
