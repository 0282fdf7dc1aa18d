package browser

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
)

// lowContrast lists each visible text whose contrast with the ground behind it is below 4.5:1, or 3:1 when it is large
// (WCAG 2.2, 1.4.3), by the colours that the browser has computed.
const lowContrast = `(() => {
	const parse = (c) => { const n = c.match(/[\d.]+/g).map(Number); return { rgb: n.slice(0, 3), a: n[3] ?? 1 }; };
	const light = (rgb) => rgb.map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
		.reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
	const ground = (e) => {
		for (; e; e = e.parentElement) {
			const c = parse(getComputedStyle(e).backgroundColor);
			if (c.a === 1) return c.rgb;
			if (c.a > 0) throw new Error("a ground that is half transparent");
		}
		throw new Error("no ground");
	};
	const found = new Set();
	const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	for (let n = 0; texts.nextNode(); n++) {
		const e = texts.currentNode.parentElement, s = getComputedStyle(e);
		if (!texts.currentNode.data.trim() || !e.checkVisibility() || e.closest(".skip, .move, noscript, script")) continue;
		const a = light(parse(s.color).rgb), b = light(ground(e));
		const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		const size = parseFloat(s.fontSize), large = size >= 24 || size >= 18.66 && s.fontWeight >= 700;
		if (ratio < (large ? 3 : 4.5)) found.add(e.tagName + "." + e.className + " " + ratio.toFixed(2) + ": " + texts.currentNode.data.trim());
	}
	return [...found];
})()`

// Everything that is good and bad on the page is there to be read, in light and in dark, on a desk and on a phone. With
// SCREENSHOTS naming a folder, the pictures stay there.
func TestItCanBeRead(t *testing.T) {
	v := visit(t)
	v.fresh(false)
	v.click("[data-pay='10']")
	v.settled(10)
	v.set("keys", true)
	v.click("[data-pay='100']")
	v.settled(110)
	v.happens("redeliver")
	v.happens("poison")
	v.until("document.getElementById('ledger').classList.contains('twice') && document.getElementById('naive-ledger').classList.contains('twice')")
	v.until("document.querySelectorAll('.move').length === 0")
	for _, look := range []struct {
		name, scheme  string
		width, height int64
	}{
		{"desktop-light", "light", 1440, 900}, {"desktop-dark", "dark", 1440, 900},
		{"phone-light", "light", 390, 844}, {"phone-dark", "dark", 390, 844},
	} {
		v.scheme(look.scheme)
		v.do(chromedp.EmulateViewport(look.width, look.height))
		for _, view := range []string{"lab", "console"} {
			v.click("#to-" + view)
			if view == "console" {
				v.until("document.querySelectorAll('.charts svg').length === 3 && document.querySelectorAll('#letters li').length > 0")
				v.until("(document.querySelector('#letters button:last-child').click(), true)")
				v.until("document.querySelectorAll('#journey li').length > 0")
			}
			v.legible(view + " " + look.name)
			v.until("document.documentElement.scrollWidth <= innerWidth") // nothing to scroll sideways
			v.shoot(view+"-"+look.name, chromedp.CaptureScreenshot())
			v.shoot(view+"-"+look.name+"-full", chromedp.FullScreenshot(100))
			if view == "lab" {
				v.rows() // they fit into their places at this width too
				v.until("(document.getElementById('intents').scrollTop = 1e6, document.getElementById('intent-1') !== null)")
				v.until("document.querySelector('#rows tr.twice-row') !== null")
				v.legible("the oldest rows " + look.name)
			}
		}
	}
}

// legible fails for each text that is not.
func (v *visitor) legible(where string) {
	v.t.Helper()
	low, err := chromedp.Run(v.ctx, chromedp.Evaluate[[]string](lowContrast))
	if err != nil {
		v.t.Fatal(err)
	}
	for _, l := range low {
		v.t.Errorf("%s: %s", where, l)
	}
}

func (v *visitor) scheme(name string) { v.media("prefers-color-scheme", name) }

// media has the browser say that its visitor prefers that.
func (v *visitor) media(feature, value string) {
	v.t.Helper()
	if _, err := chromedp.Call(v.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: feature, Value: value}}}); err != nil {
		v.t.Fatal(err)
	}
}

// shoot leaves a picture in the folder that SCREENSHOTS names, if it does.
func (v *visitor) shoot(name string, shot chromedp.Action[[]byte]) {
	v.t.Helper()
	dir := os.Getenv("SCREENSHOTS")
	if dir == "" {
		return
	}
	v.until("(scrollTo(0, 0), document.querySelector('.side').scrollTop = 0, document.activeElement.blur(), true)")
	picture, err := chromedp.Run(v.ctx, shot)
	if err != nil {
		v.t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o644)); err != nil {
		v.t.Fatal(err)
	}
}
