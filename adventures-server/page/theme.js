// Before the first paint, so that the page does not flash in the other colours.
{
  let theme = null;
  try {
    theme = localStorage.getItem('adventures.theme');
  } catch {
    // A browser that keeps nothing.
  }
  if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
}
