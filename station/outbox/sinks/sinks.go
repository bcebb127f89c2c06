// Package sinks owns the part `out` of a station's configuration: which sinks
// there are. It makes them and opens the outbox with them.
package sinks

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/provisiond/provisiond/station/outbox"
	"github.com/provisiond/provisiond/station/outbox/hotfolder"
	"github.com/provisiond/provisiond/station/outbox/jetstream"
	"github.com/provisiond/provisiond/station/outbox/label"
	"github.com/provisiond/provisiond/station/outbox/webhook"
)

// Config lists the sinks. The zero value has none.
type Config struct {
	Webhooks   []webhook.Config   `yaml:"webhooks,omitempty"`
	HotFolders []hotfolder.Config `yaml:"hot_folders,omitempty"`
	Labels     []label.Config     `yaml:"labels,omitempty"`
	JetStreams []jetstream.Config `yaml:"jetstreams,omitempty"`
}

// Names gives the sinks' names in the order of Open.
func (c Config) Names() (names []string) {
	c.each(func(_, name string, _ func() error) { names = append(names, name) })
	return names
}

// Printers gives the names that label.Request.Printer may have.
func (c Config) Printers() (names []string) {
	for _, l := range c.Labels {
		names = append(names, l.Name)
	}
	return names
}

// each goes through the sinks in the order of Open.
func (c Config) each(f func(path, name string, validate func() error)) {
	for i, s := range c.Webhooks {
		f(fmt.Sprintf("webhooks[%d]", i), s.Name, s.Validate)
	}
	for i, s := range c.HotFolders {
		f(fmt.Sprintf("hot_folders[%d]", i), s.Name, s.Validate)
	}
	for i, s := range c.Labels {
		f(fmt.Sprintf("labels[%d]", i), s.Name, s.Validate)
	}
	for i, s := range c.JetStreams {
		f(fmt.Sprintf("jetstreams[%d]", i), s.Name, s.Validate)
	}
}

// Validate checks everything that needs no file. Its errors begin with the path
// of the field below the one that holds the Config.
func (c Config) Validate() error {
	var errs []error
	seen := map[string]string{}
	c.each(func(path, name string, validate func() error) {
		if err := validate(); err != nil {
			errs = append(errs, fmt.Errorf("%s.%w", path, err))
		} else if other, ok := seen[name]; ok {
			errs = append(errs, fmt.Errorf("%s.name: %q is also the name of %s", path, name, other))
		}
		seen[name] = path
	})
	for i, s := range c.JetStreams {
		// Each looks in its stream for the last event of the station, so two with
		// different events in one stream would leave events out.
		if j := slices.IndexFunc(c.JetStreams[:i], func(o jetstream.Config) bool { return o.Stream == s.Stream && o.Domain == s.Domain }); j >= 0 {
			errs = append(errs, fmt.Errorf("jetstreams[%d].stream: jetstreams[%d] publishes to %s already; select more events there", i, j, s.Stream))
		}
	}
	return errors.Join(errs...)
}

// Open makes the sinks and opens the outbox. resolve turns the file names of the
// configuration into paths; "credential:NAME" is left to the sinks. Without a
// sink there is an outbox that does nothing.
func (c Config) Open(j outbox.Journal, stateDir string, resolve func(string) string) (o *outbox.Outbox, err error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	if resolve == nil {
		resolve = filepath.Clean
	}
	path := func(names ...*string) {
		for _, n := range names {
			if *n != "" {
				*n = resolve(*n)
			}
		}
	}
	var list []outbox.Delivery
	defer func() {
		if err != nil {
			for _, d := range list {
				err = errors.Join(err, d.Sink.Close())
			}
		}
	}()
	for i, s := range c.Webhooks {
		path(&s.SecretFile, &s.OldSecretFile, &s.CACert, &s.CertFile, &s.KeyFile)
		sink, err := webhook.New(s)
		if err != nil {
			return nil, fmt.Errorf("webhooks[%d].%w", i, err)
		}
		list = append(list, sink.Delivery())
	}
	for i, s := range c.HotFolders {
		sink, err := hotfolder.New(s)
		if err != nil {
			return nil, fmt.Errorf("hot_folders[%d].%w", i, err)
		}
		list = append(list, sink.Delivery())
	}
	for i, s := range c.Labels {
		path(&s.Template)
		recipes := map[string]string{}
		for name, file := range s.Recipes {
			path(&file)
			recipes[name] = file
		}
		s.Recipes = recipes
		sink, err := label.New(s, stateDir)
		if err != nil {
			return nil, fmt.Errorf("labels[%d].%w", i, err)
		}
		list = append(list, sink.Delivery())
	}
	for i, s := range c.JetStreams {
		path(&s.CredsFile, &s.CACert, &s.CertFile, &s.KeyFile)
		sink, err := jetstream.New(s)
		if err != nil {
			return nil, fmt.Errorf("jetstreams[%d].%w", i, err)
		}
		list = append(list, sink.Delivery())
	}
	return outbox.Open(j, stateDir, list)
}
