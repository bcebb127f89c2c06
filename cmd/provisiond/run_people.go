package main

import (
	"context"

	"github.com/provisiond/provisiond/station"
	"github.com/provisiond/provisiond/station/web"
)

// server is the pages and the API of the station.
func (d *daemon) server() (*web.Server, error) {
	o := web.Options{Station: d.station, People: nobody{}, Metrics: d.metrics, Log: d.a.log, Config: d.cfg.Web}
	if d.people != nil {
		o.People = web.FromBook(d.people)
	}
	if f := d.cfg.Web.Tokens; f != "" {
		var err error
		if o.Tokens, err = web.LoadTokens(d.cfg.Resolve(f)); err != nil {
			return nil, usage("%s: web.tokens: %w", d.path, err)
		}
	}
	o.Config.TLS.Certificate = d.cfg.Resolve(o.Config.TLS.Certificate)
	o.Config.TLS.Key = d.cfg.Resolve(o.Config.TLS.Key)
	s, err := web.New(o)
	if err != nil {
		return nil, &usageError{err}
	}
	return s, nil
}

// nobody is the book of a station that knows no people.
type nobody struct{}

func (nobody) Login(context.Context, web.Credentials) (web.Session, error) {
	return web.Session{}, &station.ActionError{
		Kind: station.ActionConflict, Text: "this station knows no people",
		Next: "name a file of people in its configuration; `provisiond people init` makes one",
	}
}

func (nobody) Session(string, bool) (web.Session, bool) { return web.Session{}, false }

func (nobody) Logout(string) {}
