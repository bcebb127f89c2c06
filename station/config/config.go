// Package config owns the file that `provisiond run --config` reads: what it may
// say, what it means, and what is wrong with it. The comments of File are its
// manual; configs/station.yaml is an example that a test loads.
//
// A file with an unknown key, a key twice, or a value that is not right is refused
// as a whole, with every place named: file, line, path and what would be right.
package config

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/provisiond/provisiond/internal/conf"
	"github.com/provisiond/provisiond/keystore/escrow"
	"github.com/provisiond/provisiond/station/hook"
	"github.com/provisiond/provisiond/station/outbox/sinks"
	"github.com/provisiond/provisiond/station/web"
)

// File is a station's configuration. Relative file names are relative to the file,
// those under `state` excepted.
type File struct {
	// Station is this station's name, the same as in its journal.
	Station string `yaml:"station"`
	// State is the folder for what the station keeps: views, cursors, its own
	// certificate. Without it: the folder that systemd gives, $STATE_DIRECTORY.
	State string `yaml:"state"`
	// Journal of this station. `provisiond journal init` makes it.
	Journal Journal `yaml:"journal"`
	// Keystore is what --keystore says: vault:FILE.yaml or the file of a local one.
	Keystore string `yaml:"keystore"`
	// Escrow lets the line go on while the keystore is away. Off without it.
	Escrow *escrow.Config `yaml:"escrow"`
	// Recipes are the recipes that lots may be opened with; patterns are allowed:
	// recipes/*.yaml.
	Recipes []string `yaml:"recipes"`
	// Ports is the folder of the allow-list: which slot is at which port, in
	// drop-in files *.yaml (docs/station.md). A port that nobody listed is skipped.
	Ports string `yaml:"ports"`
	// Start is what starts a unit where a slot says nothing: plug, scan or button.
	// plug is right where every board brings its own USB port; a fixture whose
	// adapters stay wants scan or button. plug without it.
	Start string `yaml:"start"`
	// UnitTimeout ends a run that makes no end; 15m without it.
	UnitTimeout time.Duration `yaml:"unit_timeout"`
	// Failures in a row after which a slot is set aside; 3 without it.
	Failures int `yaml:"failures"`
	// LoginToStart: units are begun only while somebody is logged in.
	LoginToStart bool `yaml:"login_to_start"`
	// TimeZone of the factory's day, for example Europe/Berlin; the machine's without it.
	TimeZone string `yaml:"time_zone"`
	// People is the file of who may log in. `provisiond people` keeps it. Without it
	// nobody can log in, and the pages only show.
	People string `yaml:"people"`
	// Web are the pages and the API.
	Web web.Config `yaml:"web"`
	// Hooks are programs that are run before and after each unit.
	Hooks hook.Config `yaml:"hooks"`
	// Out is what leaves the station: webhooks, hot folders, labels, JetStream
	// (docs/factory.md).
	Out sinks.Config `yaml:"out"`
	// Simulated lets the station have simulated slots (sim://), and nothing else:
	// units of such a station count in no yield.
	Simulated *Simulated `yaml:"simulated"`

	places *conf.Places
}

// Journal says where the journal is and who vouches for it.
type Journal struct {
	File string `yaml:"file"`
	// SigningKey signs the checkpoints, if it is not beside the journal.
	// credential:NAME is the file NAME in systemd's credentials directory;
	// vault-transit is the station's key in the keystore's Vault.
	SigningKey string `yaml:"signing_key"`
	// Anchor keeps the signed checkpoints elsewhere: a folder, or vault for the
	// keystore's server.
	Anchor string `yaml:"anchor"`
	// PublicKey is the key that the journal must be signed with, NAME+HASH+KEY as
	// `provisiond journal init` prints it. It is checked at the start: a journal that
	// was replaced whole, with a new key, shows by it. Without it the journal's own
	// is believed.
	PublicKey string `yaml:"public_key"`
}

// Simulated says how simulated slots behave.
type Simulated struct {
	// Pause between two boards of a slot; 3s without it.
	Pause time.Duration `yaml:"pause"`
	// Units per slot; 0 is no end.
	Units int `yaml:"units"`
	// Paced: bytes take as long as on a wire.
	Paced bool `yaml:"paced"`
	// Faults of the boards, for example noise=1e-5 (see `provisiond sim --help`).
	Faults string `yaml:"faults"`
	// Prints is what the simulated application prints when it runs.
	Prints string `yaml:"prints"`
}

// Error is one thing that is wrong in a file.
type Error = conf.Error

// Load reads and checks a file.
func Load(name string) (*File, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	return Parse(name, b)
}

// Parse checks a file's text. All that is wrong is in the error, each as an *Error.
func Parse(name string, b []byte) (*File, error) {
	f := &File{}
	var err error
	if f.places, err = conf.Parse(name, b, f, "configs/station.yaml"); err != nil {
		return nil, err
	}
	if err := f.validate(); err != nil {
		return nil, err
	}
	f.fill()
	return f, nil
}

// stationName is what a journal takes as a station's name.
var stationName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

func (f *File) validate() error {
	var errs []error
	bad := func(path, fix, format string, args ...any) {
		errs = append(errs, f.places.At(path, fix, format, args...))
	}
	for _, r := range []struct{ path, value, example string }{
		{"station", f.Station, "station: line-3"},
		{"journal.file", f.Journal.File, "file: journal.db, below journal:"},
		{"keystore", f.Keystore, "keystore: vault:keystore.yaml"},
		{"ports", f.Ports, "ports: ports.d"},
	} {
		if r.value == "" {
			bad(r.path, "write "+r.example, "is missing")
		}
	}
	if f.Station != "" && !stationName.MatchString(f.Station) {
		bad("station", "write letters, digits and . _ -, at most 64", "%q is no name of a station", f.Station)
	}
	if len(f.Recipes) == 0 {
		bad("recipes", "write recipes: [recipes/*.yaml]", "are missing")
	}
	for i, p := range f.Recipes {
		if _, err := filepath.Match(p, ""); err != nil || p == "" {
			bad(fmt.Sprintf("recipes[%d]", i), "write a file name, or one with *", "%q is no pattern", p)
		}
	}
	if k := f.Journal.PublicKey; k != "" {
		if _, err := note.NewVerifier(k); err != nil {
			bad("journal.public_key", "write the whole line that journal init printed and that journal.db.pub holds, NAME+HASH+KEY", "%q is no public key of a journal", k)
		}
	}
	if !slices.Contains([]string{"", "plug", "scan", "button"}, f.Start) {
		bad("start", "write plug, scan or button", "%q starts nothing", f.Start)
	}
	if f.UnitTimeout != 0 && (f.UnitTimeout < time.Minute || f.UnitTimeout > 24*time.Hour) {
		bad("unit_timeout", "write 1m to 24h", "%s is not sensible", f.UnitTimeout)
	}
	if f.Failures < 0 || f.Failures > 100 {
		bad("failures", "write 1 to 100", "%d is not sensible", f.Failures)
	}
	if _, err := time.LoadLocation(f.TimeZone); err != nil {
		bad("time_zone", "write a name of the IANA list, for example Europe/Berlin", "%v", err)
	}
	if f.LoginToStart && f.People == "" {
		bad("login_to_start", "name the people file, or take this away", "nobody can log in without people")
	}
	errs = append(errs, f.parts()...)
	return conf.Join(errs)
}

func (f *File) escrow() error {
	if f.Escrow == nil {
		return nil
	}
	return f.Escrow.Validate()
}

// parts are the errors of the sections, which their packages check.
func (f *File) parts() []error {
	var out []error
	for _, p := range []struct {
		path string
		err  error
	}{
		{"web", f.Web.Validate()}, {"hooks", f.Hooks.Validate()}, {"escrow", f.escrow()}, {"out", f.Out.Validate()},
	} {
		for _, err := range flatten(p.err) {
			path, problem, ok := strings.Cut(strings.TrimPrefix(err.Error(), p.path+"."), ": ")
			if !ok {
				path, problem = "", err.Error()
			}
			full := strings.TrimSuffix(p.path+"."+path, ".")
			out = append(out, f.places.At(full, "", "%s", problem))
		}
	}
	return out
}

// flatten takes joined errors apart.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	if many, ok := err.(interface{ Unwrap() []error }); ok {
		var out []error
		for _, e := range many.Unwrap() {
			out = append(out, flatten(e)...)
		}
		return out
	}
	return []error{err}
}

// fill sets what was left out and makes file names absolute.
func (f *File) fill() {
	f.Start = cmp.Or(f.Start, "plug")
	f.UnitTimeout = cmp.Or(f.UnitTimeout, 15*time.Minute)
	f.Failures = cmp.Or(f.Failures, 3)
	f.State = cmp.Or(f.State, os.Getenv("STATE_DIRECTORY"))
	if f.Simulated != nil {
		f.Simulated.Pause = cmp.Or(f.Simulated.Pause, 3*time.Second)
	}
	for _, p := range []*string{&f.State, &f.Journal.File, &f.Ports, &f.People} {
		*p = f.Resolve(*p)
	}
	for _, p := range []*string{&f.Journal.SigningKey, &f.Journal.Anchor, &f.Keystore} {
		*p = f.places.ResolveAny(*p)
	}
	if f.Escrow != nil {
		f.Escrow.Dir = f.Resolve(f.Escrow.Dir)
	}
}

// Resolve is a file name as seen from the configuration's folder. credential:NAME
// is a file in systemd's credentials directory.
func (f *File) Resolve(name string) string { return f.places.Resolve(name) }

// RecipeFiles lists the recipes that the patterns find.
func (f *File) RecipeFiles() ([]string, error) {
	var out []string
	for i, p := range f.Recipes {
		found, err := filepath.Glob(f.Resolve(p))
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			return nil, f.places.At(fmt.Sprintf("recipes[%d]", i), "check the folder", "no file is called %s", f.Resolve(p))
		}
		out = append(out, found...)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// Place is the factory's time zone.
func (f *File) Place() *time.Location {
	if f.TimeZone == "" {
		return time.Local
	}
	l, err := time.LoadLocation(f.TimeZone)
	if err != nil { // validated
		return time.UTC
	}
	return l
}
