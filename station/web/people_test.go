package web_test

import (
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"

	"github.com/provisiond/provisiond/station/people"
	"github.com/provisiond/provisiond/station/web"
)

// TestFromBook logs people of a real file in and out through the pages.
func TestFromBook(t *testing.T) {
	file := filepath.Join(t.TempDir(), "people.yaml")
	if err := people.Init(file); err != nil {
		t.Fatal(err)
	}
	for _, p := range []struct {
		people.Person
		secrets []people.Secret
	}{
		{people.Person{Name: "kim.lee", Display: "Kim Lee", Role: people.Operator}, []people.Secret{{Kind: people.Badge, Text: []byte("B-4711-0815")}, {Kind: people.PIN, Text: []byte("592761")}}},
		{people.Person{Name: "eve.roy", Display: "Eve Roy", Role: people.Engineer}, []people.Secret{{Kind: people.Password, Text: []byte("a long word of an engineer")}}},
	} {
		if err := people.Add(file, p.Person, p.secrets...); err != nil {
			t.Fatal(err)
		}
	}
	book, err := people.Open(file, people.Options{})
	if err != nil {
		t.Fatal(err)
	}
	d := newDouble(2)
	s := newServer(t, d, func(o *web.Options) { o.People = web.FromBook(book) })
	for _, c := range []struct {
		path string
		form url.Values
		want string // on the page
	}{
		{"/login", url.Values{"badge": {"badge:B-4711-0815"}}, "Kim Lee"},
		{"/login", url.Values{"badge": {"B-4711-0815"}}, "Kim Lee"},
		{"/login", url.Values{"name": {"kim.lee"}, "secret": {"592761"}}, "Kim Lee"},
		{"/login?with=password", url.Values{"name": {"eve.roy"}, "secret": {"a long word of an engineer"}}, "Eve Roy"},
	} {
		w := page(s, "POST", c.path, c.form, "")
		if w.Code != http.StatusSeeOther || len(w.Result().Cookies()) != 1 {
			t.Fatalf("%s %v: %d", c.path, c.form, w.Code)
		}
		token := w.Result().Cookies()[0].Value
		if w := page(s, "GET", "/", nil, token); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "<b>"+c.want+"</b>") {
			t.Errorf("%s: %d", c.want, w.Code)
		}
		page(s, "POST", "/logout", url.Values{}, token)
		if w := page(s, "GET", "/", nil, token); w.Code != http.StatusSeeOther {
			t.Errorf("after logging out: %d", w.Code)
		}
	}
	// A PIN is no password, and who tries again and again waits.
	if w := page(s, "POST", "/login?with=password", url.Values{"name": {"kim.lee"}, "secret": {"592761"}}, ""); w.Code != http.StatusUnauthorized {
		t.Errorf("a PIN as a password: %d", w.Code)
	}
	code := 0
	for range 20 {
		w := page(s, "POST", "/login", url.Values{"name": {"kim.lee"}, "secret": {"111222"}}, "")
		if code = w.Code; code == http.StatusTooManyRequests {
			if w.Header().Get("Retry-After") == "" {
				t.Error("it does not say for how long")
			}
			break
		}
	}
	if code != http.StatusTooManyRequests {
		t.Errorf("twenty wrong PINs: %d", code)
	}
}
