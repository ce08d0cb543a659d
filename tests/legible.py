"""What a browser says of how a page can be read: text that is too pale for its ground, and the levels of headings."""

# Text with a contrast below WCAG 2.2's 4.5 : 1, or 3 : 1 where it is large, and how pale it is. Left out is what is
# disabled or fades away, a slider's value, which stands above its thumb and not on it, and black or white digits, which
# stand on a cell that is drawn (`figures.colours.readable_on` chooses between the two).
PALE_TEXT = """() => {
    const LEFT_OUT = "style, script, [disabled], [aria-disabled=true], [data-stale=true], "
        + "[data-testid=stSliderThumbValue]";
    const ON_A_CELL = ["rgb(0, 0, 0)", "rgb(255, 255, 255)"];
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const parse = colour => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
        return [red, green, blue, alpha / 255];
    };
    const over = (top, below) => [0, 1, 2].map(k => top[k] * top[3] + below[k] * (1 - top[3])).concat(1);
    const linear = part => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    const luminance = colour => [0.2126, 0.7152, 0.0722].reduce((sum, k, at) => sum + k * linear(colour[at] / 255), 0);
    const parents = element => element ? [element, ...parents(element.parentElement)] : [];
    const ground = element => {
        const colours = parents(element).map(one => parse(getComputedStyle(one).backgroundColor));
        const last = colours.findIndex(colour => colour[3] === 1);
        const layers = (last < 0 ? colours : colours.slice(0, last + 1)).reverse();
        return layers.reduce((below, top) => over(top, below), [255, 255, 255, 1]);
    };
    const pale = new Map(), texts = document.createTreeWalker(document.querySelector(".stApp"), NodeFilter.SHOW_TEXT);
    for (let node; node = texts.nextNode();) {
        const words = node.textContent.trim(), element = node.parentElement, style = getComputedStyle(element);
        const box = element.getBoundingClientRect(), isIcon = /icon/i.test(element.dataset.testid ?? "");
        if (!words || isIcon || style.visibility === "hidden" || !box.width || !box.height) continue;
        const svg = element.closest("svg"), fill = svg ? style.fill : style.color;
        if (element.closest(LEFT_OUT) || svg && ON_A_CELL.includes(fill)) continue;
        const opacity = parents(element).reduce((all, one) => all * getComputedStyle(one).opacity, 1);
        if (opacity < 0.05) continue;
        const [red, green, blue, alpha] = parse(fill), below = ground(svg ?? element);
        const shown = over([red, green, blue, alpha * opacity], below);
        const [high, low] = [luminance(shown), luminance(below)].sort((one, other) => other - one);
        const size = parseFloat(style.fontSize), isLarge = size >= 24 || size >= 18.66 && style.fontWeight >= 700;
        const contrast = (high + 0.05) / (low + 0.05);
        if (contrast < (isLarge ? 3 : 4.5)) pale.set(words.slice(0, 40), contrast.toFixed(2));
    }
    return Object.fromEntries([...pale].slice(0, 12));
}"""

HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")]
    .filter(one => one.getBoundingClientRect().height && one.textContent.trim()).map(one => Number(one.tagName[1]))"""
