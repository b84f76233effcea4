"""The page for readers of every kind: names for screen readers, contrast, and a drawing that can be read."""

from __future__ import annotations

import pytest

pytest.importorskip("websockets", reason="needs websockets, which drives the browser")

from tests.serve.chromium import Tab
from tests.serve.page_driver import open_page, run
from tests.serve.tiny_server import Served

pytestmark = pytest.mark.slow


def test_every_control_has_a_name_and_the_tree_is_one(tab: Tab, server: Served):
    open_page(tab, server.url)
    run(tab)
    nodes = [node for node in tab.send("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    by_role: dict[str, list[str]] = {}
    for node in nodes:
        by_role.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role in ("textbox", "combobox", "spinbutton", "button", "checkbox", "slider", "treeitem", "tree"):
        assert by_role[role], role
        assert all(by_role[role]), f"a {role} without a name: {by_role[role]}"
    assert by_role["tree"] == ["Search tree, from left to right"]
    assert any(name.startswith("Step 1, value ") and "on the chosen path" in name for name in by_role["treeitem"])


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_has_a_contrast_of_4_5_in_both_themes(tab: Tab, server: Served, theme: str):
    tab.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
    open_page(tab, server.url)
    run(tab)
    tab.evaluate("document.activeElement.blur()")
    low = tab.evaluate(CONTRASTS)
    assert low["n"] > 60
    assert low["worst"] >= 4.5, low
    tab.send("Emulation.setEmulatedMedia", features=[])


# The lowest WCAG 2 contrast of an element that holds text itself against what is painted under it. A canvas turns
# every colour that CSS can name into sRGB.
CONTRASTS = """(() => {
  const pen = Object.assign(document.createElement('canvas'), { width: 1, height: 1 })
    .getContext('2d', { willReadFrequently: true });
  const rgba = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b]
    .map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const under = (element) => {
    if (element.closest('.node')) return rgba(getComputedStyle(element.closest('.node').querySelector('.box')).fill);
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
  };
  let worst = { worst: 21, n: 0 };
  for (const element of document.body.querySelectorAll('*')) {
    const isText = [...element.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim());
    if (!isText || !element.checkVisibility() || element.matches(':disabled, option, template')) continue;
    const style = getComputedStyle(element);
    const ink = rgba(element instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(under(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    worst.n += 1;
    if (contrast < worst.worst) worst = { ...worst, worst: contrast, text: element.textContent };
  }
  return worst;
})()"""


def test_largest_tree_is_drawn_without_an_overlap(tab: Tab, server: Served):
    """16 candidates a step for 20 steps, of which 4 go on, and the worst case of an order that changes."""
    open_page(tab, server.url)
    overlaps = tab.evaluate(
        """import('/page/tree.js').then(({ SearchTree, layout, NODE }) => {
          const tree = new SearchTree('');
          let kept = [0], index = 1;
          for (let depth = 1; depth <= 20; depth++) {
            const nodes = kept.flatMap((parent) => [0, 1, 2, 3].map(() => (
              { index, parent, depth, text: '', score: Math.sin(7 * index++), state: 'open' }
            )));
            tree.apply(nodes);
            kept = nodes.toSorted((a, b) => b.score - a.score).slice(0, 4).map((node) => node.index);
          }
          const { places, width, height } = layout(tree);
          const all = [...places.values()];
          const touch = (a, b) => Math.abs(a.x - b.x) < NODE.width && Math.abs(a.y - b.y) < NODE.height;
          const isOut = ({ x, y }) => x < 0 || y < 0 || x + NODE.width > width || y + NODE.height > height;
          const crossed = all.filter((a) => all.some((b) => a.column === b.column && a.column > 0 && a.y < b.y
            && places.get(a.node.parent).y > places.get(b.node.parent).y));
          const n = all.filter((a, i) => all.some((b, j) => i < j && touch(a, b))).length;
          return { n, nOut: all.filter(isOut).length, nCrossed: crossed.length, nNodes: all.length };
        })"""
    )
    # 4 nodes below the prompt, then 16 at each of 19 steps, and the prompt
    assert overlaps == {"n": 0, "nOut": 0, "nCrossed": 0, "nNodes": 1 + 4 + 19 * 16}


def test_nodes_stand_at_the_least_squares_places(tab: Tab, server: Served):
    """Wished 0, 0, 6 with a gap of 4: the first two share their error, −2 and 2; the third has room at 6."""
    open_page(tab, server.url)
    found = tab.evaluate("import('/page/tree.js').then(({ spread }) => spread([0, 0, 6], [0, 4, 8]))")
    assert found == [-2, 2, 6]
