// Light, dark, or as the system says.

const THEMES = ["auto", "light", "dark"];

export function startTheme(button) {
  show(localStorage.getItem("theme") ?? "auto");
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    localStorage.setItem("theme", next);
    show(next);
  });

  function show(theme) {
    document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
  }
}
