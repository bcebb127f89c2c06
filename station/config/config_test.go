package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/provisiond/provisiond/station/config"
	"github.com/provisiond/provisiond/station/discover"
)

const good = `station: line-3
state: state
journal: {file: journal.db}
keystore: vault:keystore.yaml
recipes: [recipes/*.yaml]
ports: ports.d
`

// publicKey is that of docs/journal.md's test vector.
const publicKey = "provisiond/journal/000102030405060708090a0b0c0d0e0f+7f45f1d9+AQOhB7/zzhC+HXDdGOdLwJln5NYwm6UNXx3chmQSVTG4"

func TestExample(t *testing.T) {
	f, err := config.Load(filepath.Join("..", "..", "configs", "station.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if f.Station != "line-3" || f.UnitTimeout != 15*time.Minute || f.Place().String() != "Europe/Berlin" {
		t.Errorf("%+v", f)
	}
	files, err := f.RecipeFiles()
	if err != nil || len(files) < 3 {
		t.Errorf("%v %v", files, err)
	}
	slots, err := discover.LoadPorts(f.Ports, nil)
	if err != nil || len(slots) != 3 {
		t.Errorf("%v %v", slots, err)
	}
}

// TestExampleHasEverything: what is commented out in the example is right too.
func TestExampleHasEverything(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("..", "..", "configs", "station.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, line := range strings.SplitAfter(string(b), "\n") {
		indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
		if rest, ok := strings.CutPrefix(strings.TrimLeft(line, " "), "# "); ok && strings.Contains(rest, ":") && !strings.Contains(rest, "`") && !strings.HasPrefix(rest, "there is") {
			line = indent + rest
		}
		text.WriteString(strings.ReplaceAll(line, "[age1...]", "[age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p]"))
	}
	s := strings.Replace(text.String(), "tls: {mode: self}", "tls: {mode: self}", 1)
	if _, err := config.Parse("station.yaml", []byte(s)); err != nil {
		t.Errorf("%v\n%s", err, s)
	}
}

func TestDefaultsAndPlaces(t *testing.T) {
	f, err := config.Parse("/etc/provisiond/station.yaml", []byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if f.Start != "plug" || f.Failures != 3 || f.Keystore != "vault:/etc/provisiond/keystore.yaml" ||
		f.Journal.File != "/etc/provisiond/journal.db" || f.Ports != "/etc/provisiond/ports.d" {
		t.Errorf("%+v", f)
	}
	t.Setenv("CREDENTIALS_DIRECTORY", "/run/credentials/provisiond.service")
	if got := f.Resolve("credential:key"); got != "/run/credentials/provisiond.service/key" {
		t.Error(got)
	}
}

// TestPublicKey: the key is taken as it is, it is no file name.
func TestPublicKey(t *testing.T) {
	f, err := config.Parse("/etc/provisiond/station.yaml", []byte(strings.Replace(good, "journal.db}", "journal.db, public_key: "+publicKey+"}", 1)))
	if err != nil || f.Journal.PublicKey != publicKey {
		t.Errorf("%+v, %v", f, err)
	}
	if f, err = config.Parse("s.yaml", []byte(good)); err != nil || f.Journal.PublicKey != "" {
		t.Errorf("without one: %+v, %v", f, err)
	}
}

func TestErrorsNameThePlace(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"unknown key", good + "statoin: x\n", []string{"s.yaml:7: statoin: there is no such key here"}},
		{"key twice", good + "station: x\n", []string{"s.yaml:7: station: is on line 1 too"}},
		{"unknown key inside", good + "web: {lisen: x}\n", []string{"s.yaml:7: lisen: there is no such key here"}},
		{"another type", good + "failures: many\n", []string{"s.yaml:7:", "many"}},
		{"empty", "", []string{"station: is missing", "journal.file: is missing", "keystore: is missing", "recipes: are missing", "ports: is missing"}},
		{"several", strings.Replace(good, "line-3", "line 3", 1) + "start: never\nunit_timeout: 1s\nfailures: 1000\ntime_zone: Mars/Base\n", []string{
			`s.yaml:1: station: "line 3" is no name`, `s.yaml:7: start: "never" starts nothing`, "s.yaml:8: unit_timeout: 1s is not sensible", "s.yaml:9: failures: 1000", "s.yaml:10: time_zone: ",
		}},
		{"section", good + "web:\n  listen: 0.0.0.0:80\n  tls: {mode: off}\n", []string{"s.yaml:9: web.tls.mode: without TLS"}},
		{"hook", good + "hooks:\n  before: {program: jig}\n", []string{`s.yaml:8: hooks.before.program: "jig" is no absolute path`}},
		{"login without people", good + "login_to_start: true\n", []string{"s.yaml:7: login_to_start: nobody can log in"}},
		{"escrow without bound", good + "escrow: {dir: e, recipients: [x]}\n", []string{"s.yaml:7: escrow"}},
		{"no public key", strings.Replace(good, "{file: journal.db}", "\n  file: journal.db\n  public_key: journal.db.pub", 1), []string{`s.yaml:5: journal.public_key: "journal.db.pub" is no public key of a journal`, "NAME+HASH+KEY"}},
		{"public key cut", strings.Replace(good, "journal.db}", "journal.db, public_key: "+publicKey[:len(publicKey)-4]+"}", 1), []string{"s.yaml:3: journal.public_key: "}},
		{"public key changed", strings.Replace(good, "journal.db}", "journal.db, public_key: "+strings.Replace(publicKey, "SVTG4", "SVTG5", 1)+"}", 1), []string{"s.yaml:3: journal.public_key: "}},
		{"public key elsewhere", good + "public_key: " + publicKey + "\n", []string{"s.yaml:7: public_key: there is no such key here"}},
		{"anchor", good + "web: &w {}\n", []string{"s.yaml:7: web: uses an anchor"}},
		{"tag", good + "start: !!str plug\n", []string{"s.yaml:7: start: has a tag"}},
		{"two documents", good + "---\n" + good, []string{"a second YAML document"}},
		{"no YAML", "station: [\n", []string{"s.yaml:"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := config.Parse("s.yaml", []byte(c.text))
			if err == nil {
				t.Fatal("it was taken")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%v\nlacks %q", err, want)
				}
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("web: {listen: 1}\nweb: 2\n"))
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := config.Parse("s.yaml", b)
		if (c == nil) == (err == nil) {
			t.Errorf("%v, %v", c, err)
		}
	})
}
