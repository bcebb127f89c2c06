package web_test

import (
	"fmt"
	"testing"
)

func TestScreens(t *testing.T) {
	for _, n := range []int{4, 16, 64} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			d := newDouble(n)
			url, _ := serveOn(t, newServer(t, d, nil), "127.0.0.1:0")
			b := newBrowser(t, url)
			b.login("eve", "engineer's word")
			b.open("/")
			b.wait(fmt.Sprintf("document.querySelectorAll('.tile').length === %d", n))
			b.shot(fmt.Sprintf("board-%d-light", n))
			b.click("button[name=theme][value=dark]")
			b.wait(`document.documentElement.dataset.theme === "dark"`)
			b.shot(fmt.Sprintf("board-%d-dark", n))
			if n == 16 {
				for name, path := range map[string]string{"slot": "/slots/A3", "history": "/history", "lots": "/lots", "recipes": "/recipes", "plan": "/recipes/sensor", "audit": "/audit?unit=24:0a:c4:00:1f:02", "station": "/station", "help": "/help", "barcodes": "/barcodes"} {
					b.open(path)
					b.shot("page-" + name + "-dark")
					b.click("button[name=theme][value=light]")
					b.wait(`document.documentElement.dataset.theme === "light"`)
					b.shot("page-" + name + "-light")
					b.click("button[name=theme][value=dark]")
					b.wait(`document.documentElement.dataset.theme === "dark"`)
				}
			}
		})
	}
}
