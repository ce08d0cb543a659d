"""What runs in the reader's browser: saving a picture, keeping a zoom with its names, telling the window's width."""

from __future__ import annotations

import streamlit as st

# Plotly's own camera button draws the picture, as SVG. What it lacks is added here: the font, which a picture cannot
# take from the page, and of what it is. A click that the page does not see leaves the menu open.
SAVE_BUTTONS = st.components.v2.component(
    "weanalysis_save_figure",
    html="<div><button data-format='png'>PNG</button><button data-format='svg'>SVG</button></div>",
    css="""
    div {display: flex; gap: 1rem;}
    button {
        font: inherit; cursor: pointer; padding: 0.3rem 0.75rem; font-size: 0.875rem; color: var(--st-text-color);
        background: var(--st-background-color); border: 1px solid var(--st-border-color);
        border-radius: var(--st-button-radius, 0.5rem);
    }
    button:hover, button:focus-visible {border-color: var(--st-primary-color); color: var(--st-primary-color);}
    """,
    js="""
    const NAMESPACE = "http://www.w3.org/2000/svg", SCALE = 2, LINE = 18;

    const asUrl = blob => new Promise(done => {
        const reader = new FileReader();
        reader.onload = () => done(reader.result);
        reader.readAsDataURL(blob);
    });

    let fonts;
    async function fontRules() {
        const rules = [...document.styleSheets]
            .flatMap(sheet => { try { return [...sheet.cssRules]; } catch { return []; } })
            .filter(rule => rule instanceof CSSFontFaceRule && /source sans/i.test(rule.style.fontFamily));
        return Promise.all(rules.map(async rule => {
            const [, address] = rule.style.getPropertyValue("src").match(/url\\(["']?([^"')]+)/) ?? [];
            const sheet = rule.parentStyleSheet.href ?? location.href;
            const content = await asUrl(await (await fetch(new URL(address, sheet))).blob());
            const kept = ["font-weight", "font-style"].map(name => [name, rule.style.getPropertyValue(name)]);
            const words = kept.filter(([, value]) => value).map(pair => pair.join(": ")).join("; ");
            return `@font-face {font-family: ${rule.style.fontFamily}; ${words}; src: url(${content});}`;
        })).then(all => all.join(" "));
    }

    function drawn(plot, camera) {
        return new Promise(done => {
            const take = event => {
                const link = event.target.closest?.("a[download]");
                if (!link) return;
                event.preventDefault();
                event.stopImmediatePropagation();
                removeEventListener("click", take, true);
                done(fetch(link.href).then(response => response.text()));
            };
            addEventListener("click", take, true);
            plot._context.toImageButtonOptions = { format: "svg" };
            plot.addEventListener("click", event => event.stopPropagation(), { once: true });
            camera.click();
        });
    }

    function lines(words, width) {
        const most = Math.max(20, Math.floor(width / 6.6)), all = [""];
        for (const word of words.split(" ")) {
            const last = all[all.length - 1];
            if (last && last.length + word.length >= most) all.push(word);
            else all[all.length - 1] = last ? `${last} ${word}` : word;
        }
        return all.filter(line => line);
    }

    function dressed(text, rules, { title, about }, colours) {
        const svg = new DOMParser().parseFromString(text, "image/svg+xml").documentElement;
        const [width, height] = ["width", "height"].map(side => parseFloat(svg.getAttribute(side)));
        const words = [[title, 600], [about, 400]]
            .flatMap(([text, weight]) => lines(text, width).map(line => [line, weight]));
        const above = LINE * words.length + 10;
        const add = (name, attributes, content = "") => {
            const made = svg.ownerDocument.createElementNS(NAMESPACE, name);
            for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
            made.textContent = content;
            return made;
        };
        svg.setAttribute("height", height + above);
        svg.setAttribute("viewBox", `0 ${-above} ${width} ${height + above}`);
        const ground = add("rect", { x: 0, y: -above, width, height: height + above, fill: colours.background });
        const written = words.map(([line, weight], place) => add("text", {
            x: 8, y: -above + LINE * (place + 1), fill: colours.ink,
            style: `font: ${weight} 13px "Source Sans", sans-serif`,
        }, line));
        svg.prepend(add("style", {}, rules), ground, ...written);
        return { text: new XMLSerializer().serializeToString(svg), width, height: height + above };
    }

    async function painted({ text, width, height }) {
        const image = new Image();
        image.src = await asUrl(new Blob([text], { type: "image/svg+xml" }));
        await image.decode();
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [width * SCALE, height * SCALE];
        canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
        return new Promise(done => canvas.toBlob(done, "image/png"));
    }

    function save(blob, name) {
        const link = document.createElement("a");
        link.href = URL.createObjectURL(blob);
        link.download = name;
        link.dispatchEvent(new MouseEvent("click"));
        setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    }

    export default function ({ parentElement, data }) {
        for (const button of parentElement.querySelectorAll("button")) {
            button.onclick = async () => {
                const plot = document.querySelector(`.st-key-${data.key} .js-plotly-plot`);
                const camera = plot?.querySelector('.modebar-btn[data-title^="Download plot"]');
                if (!camera) return;
                fonts ??= fontRules();
                const page = getComputedStyle(document.querySelector(".stApp"));
                const colours = { background: page.backgroundColor, ink: page.color };
                const picture = dressed(await drawn(plot, camera), await fonts, data, colours);
                const asSvg = button.dataset.format === "svg";
                const blob = asSvg ? new Blob([picture.text], { type: "image/svg+xml" }) : await painted(picture);
                save(blob, `${data.name}.${button.dataset.format}`);
            };
        }
    }
    """,
)

# Streamlit puts a new figure in the place of one that changed, and with it goes what the reader zoomed into. This sets
# it again on the new one: Plotly's own “Reset axes” goes to the range that it remembers as the first. Of the maps of a
# mosaic whose names are zoomed out of sight, it writes the names where the maps begin.
KEEP_ZOOM = st.components.v2.component(
    "weanalysis_keep_zoom",
    html="<span></span>",
    js="""
    const axesOf = plot => Object.values(plot._fullLayout).filter(one => /^[xy]axis[0-9]*$/.test(one?._name ?? ""));
    const isWhole = plot => axesOf(plot).every(axis => axis.autorange
        || axis.range[0] === axis._rangeInitial0 && axis.range[1] === axis._rangeInitial1);

    function writeNames(plot) {
        if (!plot.layout.meta?.most_pixels) return;
        plot.querySelector(".weanalysis-names")?.remove();
        if (isWhole(plot)) return;
        const { xaxis: x, yaxis: y } = plot._fullLayout, notes = plot.layout.annotations ?? [];
        const [bottom, top] = y.range, [left, right] = x.range, names = document.createElement("div");
        names.className = "weanalysis-names";
        const tiles = (plot.layout.shapes ?? []).filter(shape => shape.layer === "below");
        tiles.forEach((tile, place) => {
            const [x0, x1] = [Math.max(tile.x0, left), Math.min(tile.x1, right)];
            const [y0, y1] = [Math.max(tile.y0, top), Math.min(tile.y1, bottom)];
            const isNamed = tile.x0 >= left && tile.y0 >= top && tile.y0 <= bottom;
            if (x0 >= x1 || y0 >= y1 || isNamed) return;
            const name = document.createElement("span");
            const text = new DOMParser().parseFromString(notes[place]?.hovertext ?? "", "text/html");
            name.textContent = text.body.textContent;
            name.style.cssText = `left: ${x._offset + x.d2p(x0)}px; top: ${y._offset + y.d2p(y0)}px`;
            names.append(name);
        });
        plot.querySelector(".svg-container").append(names);
    }

    export default function () {
        if (window.weanalysisZoom) return;
        const zooms = window.weanalysisZoom = new Map(), known = new WeakSet();
        const attend = plot => {
            const home = plot.closest('[class*="st-key-"]'), reset = plot.querySelector('[data-val="reset"]');
            if (known.has(plot) || !home || !reset || !plot.on || !plot._fullLayout?._has("cartesian")) return;
            known.add(plot);
            // By its key alone: the container's other classes change while a script runs.
            const key = [...home.classList].find(name => name.startsWith("st-key-"));
            const picture = [location.pathname, key, plot.layout.uirevision].join();
            plot.on("plotly_relayout", () => {
                writeNames(plot);
                if (isWhole(plot)) zooms.delete(picture);
                else zooms.set(picture, Object.fromEntries(axesOf(plot).map(axis => [axis._name, [...axis.range]])));
            });
            const zoom = zooms.get(picture);
            if (!zoom) return;
            const axes = axesOf(plot), first = axes.map(axis => [axis._rangeInitial0, axis._rangeInitial1]);
            for (const axis of axes) [axis._rangeInitial0, axis._rangeInitial1] = zoom[axis._name] ?? axis.range;
            reset.click();
            axesOf(plot).forEach((axis, i) => [axis._rangeInitial0, axis._rangeInitial1] = first[i]);
            writeNames(plot);
        };
        new MutationObserver(() => document.querySelectorAll(".js-plotly-plot").forEach(attend))
            .observe(document.body, { childList: true, subtree: true });
    }
    """,
)

# How wide the window is, Streamlit does not say. A wide one needs no second run of the page.
WIDTH = st.components.v2.component(
    "weanalysis_width",
    html="<span></span>",
    js="""
    export default function ({ data, setStateValue }) {
        const room = window.innerWidth < 640 ? "narrow" : window.innerWidth < 1200 ? "medium" : "wide";
        if (room !== data.room) setStateValue("room", room);
    }
    """,
)
